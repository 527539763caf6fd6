"""`class_agreement`: whether the classes match what the patches show."""

from .measure import class_agreement
from .report_text import CLASS_AGREEMENT

__all__ = ["CLASS_AGREEMENT", "class_agreement"]
