"""TOUCH: what to change: selectors, operations, plans, and the engine that runs them."""

from .operations import AblateAttention, Operation, PatchTokens, ZeroFFN
from .plan import Plan
from .selector_text import parse_selector
from .selectors import Box, FrameIs, ImageIs, Name, Random, Selector, TileIs

__all__ = [
    "AblateAttention",
    "Box",
    "FrameIs",
    "ImageIs",
    "Name",
    "Operation",
    "PatchTokens",
    "Plan",
    "Random",
    "Selector",
    "TileIs",
    "ZeroFFN",
    "parse_selector",
]
