"""`compare`: what each of several plans does to answers, against the untouched model."""

from .measure import compare
from .report_text import COMPARISON

__all__ = ["COMPARISON", "compare"]
