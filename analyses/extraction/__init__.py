"""States of many images on disk: any sites, layers and tokens, read block by block."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
