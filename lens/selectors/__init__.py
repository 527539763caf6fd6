"""Which tokens: selectors as objects, and the language they are written in."""

from .nearest_words import Control, Near
from .parser import parse_selector
from .places import Box, Columns, Dilated, FrameIs, ImageIs, Pixels, Rows, TileIs
from .scores import AttentionFrom, Bottom, Cosine, Norm, Top
from .selector_types import InLayer, Name, Random, Selection, Selector
from .text_spans import PromptSays

__all__ = [
    "AttentionFrom",
    "Bottom",
    "Box",
    "Columns",
    "Control",
    "Cosine",
    "Dilated",
    "FrameIs",
    "ImageIs",
    "InLayer",
    "Name",
    "Near",
    "Norm",
    "Pixels",
    "PromptSays",
    "Random",
    "Rows",
    "Selection",
    "Selector",
    "TileIs",
    "Top",
    "parse_selector",
]
