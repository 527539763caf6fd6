"""LEARN: what it means: analyses, their results, figures and reports.

Every analysis is one folder: how it is measured, its figure, its words, and the `Analysis` by
which results, the report and the command line find them. A folder is not named as its function,
so that `embedlens.analyses.alignment` is the function whatever was imported before.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
