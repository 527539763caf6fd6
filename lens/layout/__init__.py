"""At which place of which image every visual token stands.

Found from the inputs, the configuration and the processor.
"""

from .layout import Block, Edges, Layout
from .locate import locate
from .measure.painted_images import RepeatCall
from .video_positions import video_positions

__all__ = ["Block", "Edges", "Layout", "RepeatCall", "locate", "video_positions"]
