"""`compare_lenses`: which lens reads most of what is really there, at which depth."""

from .measure import compare_lenses
from .report_text import LENS_COMPARISON

__all__ = ["LENS_COMPARISON", "compare_lenses"]
