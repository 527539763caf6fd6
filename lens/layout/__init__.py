"""The places of visual tokens: recovered from the inputs, the configuration and the processor."""

from .block import Block, Edges, Layout
from .locate import locate
from .views import Again

__all__ = ["Again", "Block", "Edges", "Layout", "locate"]
