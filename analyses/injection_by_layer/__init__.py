"""`injection`: visual tokens that enter late, leave early, or both, layer by layer."""

from .measure import injection
from .words import INJECTION

__all__ = ["INJECTION", "injection"]
