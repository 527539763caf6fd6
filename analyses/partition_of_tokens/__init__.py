"""`partition`: visual tokens by similarity, and sinks by each of their mechanisms."""

from .measure import partition
from .words import PARTITION

__all__ = ["PARTITION", "partition"]
