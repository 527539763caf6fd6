"""The places of visual tokens: recovered from the inputs, the configuration and the processor."""

from .block import Block, Edges, Layout
from .locate import locate
from .moving import video_positions
from .views import Again

__all__ = ["Again", "Block", "Edges", "Layout", "locate", "video_positions"]
