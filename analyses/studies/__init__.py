"""Studies: conditions × data × measures from one file, computed unit by unit and resumable."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
