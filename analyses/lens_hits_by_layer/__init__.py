"""`lens_hits`: whether a lens reads what is really there."""

from .analysis import LENS_HITS
from .measure import lens_hits

__all__ = ["LENS_HITS", "lens_hits"]
