"""`alignment`: which layer's text states visual tokens resemble."""

from .analysis import ALIGNMENT
from .measure import alignment

__all__ = ["ALIGNMENT", "alignment"]
