"""SEE: the model, its inputs, its visual tokens, and reading them."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
