"""TOUCH: what to change: selectors, operations, plans, and the engine that runs them."""

from . import paper
from .attention import BlockAttention
from .operation import Operation
from .operations import AblateAttention, PatchTokens, ZeroFFN
from .paper_selectors import Control, Near
from .plan import Plan
from .pruning import InjectTokens, PruneTokens, WithdrawTokens
from .selector_text import parse_selector
from .selectors import Box, FrameIs, ImageIs, Name, Random, Selector, TileIs

__all__ = [
    "AblateAttention",
    "BlockAttention",
    "Box",
    "Control",
    "FrameIs",
    "ImageIs",
    "InjectTokens",
    "Name",
    "Near",
    "Operation",
    "PatchTokens",
    "Plan",
    "PruneTokens",
    "Random",
    "Selector",
    "TileIs",
    "WithdrawTokens",
    "ZeroFFN",
    "paper",
    "parse_selector",
]
