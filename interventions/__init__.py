"""TOUCH: what to change: selectors, operations, plans, and the engine that runs them."""

from .operations import AblateAttention, Operation, PatchTokens, ZeroFFN
from .plan import Plan
from .selector_text import parse_selector
from .selectors import Box, ImageIs, Name, Random, Selector

__all__ = [
    "AblateAttention",
    "Box",
    "ImageIs",
    "Name",
    "Operation",
    "PatchTokens",
    "Plan",
    "Random",
    "Selector",
    "ZeroFFN",
    "parse_selector",
]
