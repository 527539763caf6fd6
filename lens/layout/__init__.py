"""The places of visual tokens: recovered from the inputs, the configuration and the processor."""

from .layout import Block, Edges, Layout
from .locate import locate
from .measure.painted_images import Again
from .video_positions import video_positions

__all__ = ["Again", "Block", "Edges", "Layout", "locate", "video_positions"]
