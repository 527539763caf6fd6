"""From images and prompts, or the user's own tensors, to a batch with its visual tokens placed."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
