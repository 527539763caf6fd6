"""`pruning`: what is lost, and gained in time and memory, without some visual tokens."""

from .measure import pruning
from .report_text import PRUNING

__all__ = ["PRUNING", "pruning"]
