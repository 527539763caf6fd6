"""`partition`: visual tokens by similarity, and sinks by each of their mechanisms."""

from .measure import partition
from .report_text import PARTITION

__all__ = ["PARTITION", "partition"]
