"""TOUCH: what to change: selectors, operations, plans, and the engine that runs them."""

from . import paper
from .attention import BlockAttention
from .cost import Cost
from .operation import Operation
from .operations import AblateAttention, ZeroFFN
from .paper_selectors import Control, Near
from .patching import PatchTokens
from .plan import Plan
from .pruning import InjectTokens, PruneTokens, WithdrawTokens
from .replacing import ReplaceTokens, ScaleTokens
from .selector_text import parse_selector
from .selectors import Box, FrameIs, ImageIs, Name, Random, Selector, TileIs

__all__ = [
    "AblateAttention",
    "BlockAttention",
    "Box",
    "Control",
    "Cost",
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
    "ReplaceTokens",
    "ScaleTokens",
    "Selector",
    "TileIs",
    "WithdrawTokens",
    "ZeroFFN",
    "paper",
    "parse_selector",
]
