"""`alignment`: which layer's text states visual tokens resemble."""

from .measure import alignment
from .report_text import ALIGNMENT

__all__ = ["ALIGNMENT", "alignment"]
