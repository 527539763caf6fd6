"""`class_agreement`: whether the classes match what the patches show."""

from .analysis import CLASS_AGREEMENT
from .measure import class_agreement

__all__ = ["CLASS_AGREEMENT", "class_agreement"]
