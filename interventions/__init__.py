"""TOUCH: what to change: selectors, operations, plans, and the engine that runs them."""

from .attention import BlockAttention
from .cost import Cost
from .operation import Operation
from .operations import AblateAttention, PatchTokens, ZeroFFN
from .plan import Plan
from .pruning import InjectTokens, PruneTokens, WithdrawTokens
from .selector_text import parse_selector
from .selectors import Box, FrameIs, ImageIs, Name, Random, Selector, TileIs

__all__ = [
    "AblateAttention",
    "BlockAttention",
    "Box",
    "Cost",
    "FrameIs",
    "ImageIs",
    "InjectTokens",
    "Name",
    "Operation",
    "PatchTokens",
    "Plan",
    "PruneTokens",
    "Random",
    "Selector",
    "TileIs",
    "WithdrawTokens",
    "ZeroFFN",
    "parse_selector",
]
