"""The report: a self-contained page about results, whatever analyses they come from."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
