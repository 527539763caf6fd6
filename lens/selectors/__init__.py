"""Which tokens: selectors as objects, and the language they are written in."""

from .nearest_words import Control, Near
from .parser import parse_selector
from .selectors import Box, FrameIs, ImageIs, Name, Random, Selection, Selector, TileIs

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
