"""`redundancy`: visual attention and FFN left out, by layers, classes and tasks."""

from .measure import redundancy
from .report_text import REDUNDANCY

__all__ = ["REDUNDANCY", "redundancy"]
