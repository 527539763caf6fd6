"""`injection`: visual tokens that enter late, leave early, or both, layer by layer."""

from .measure import injection
from .report_text import INJECTION

__all__ = ["INJECTION", "injection"]
