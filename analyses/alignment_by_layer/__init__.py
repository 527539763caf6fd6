"""`alignment`: which layer's text states visual tokens resemble."""

from .measure import alignment
from .words import ALIGNMENT

__all__ = ["ALIGNMENT", "alignment"]
