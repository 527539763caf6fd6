"""TOUCH: what to change: selectors, operations, plans, and the engines that run them."""

from .operations import (
    AblateAttention,
    BlockAttention,
    InjectTokens,
    Operation,
    PatchTokens,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
    WithdrawTokens,
    ZeroFFN,
)
from .plans import Cost, Plan, paper
from .selectors import (
    Box,
    Control,
    FrameIs,
    ImageIs,
    Name,
    Near,
    Random,
    Selector,
    TileIs,
    parse_selector,
)

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
