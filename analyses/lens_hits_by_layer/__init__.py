"""`lens_hits`: whether a lens reads what is really there."""

from .measure import lens_hits
from .report_text import LENS_HITS

__all__ = ["LENS_HITS", "lens_hits"]
