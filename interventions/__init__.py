"""TOUCH: what to change: selectors, operations, plans, and the engines that run them."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
