"""The field's benchmarks: plans on the tasks of lmms-eval, as its model and from Python."""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
