"""`patching`: where another run's states carry its answer, by layer and tokens."""

from .measure import patching
from .report_text import PATCHING

__all__ = ["PATCHING", "patching"]
