"""What of embedlens works on one particular model, measured on the model itself."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
