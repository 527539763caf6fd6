"""Which tokens: selectors as objects, and the language they are written in."""

from .paper import Control, Near
from .selectors import Box, FrameIs, ImageIs, Name, Random, Selection, Selector, TileIs
from .text import parse_selector

__all__ = [
    "Box",
    "Control",
    "FrameIs",
    "ImageIs",
    "Name",
    "Near",
    "Random",
    "Selection",
    "Selector",
    "TileIs",
    "parse_selector",
]
