"""What is declared: operations, each of which lowers itself to steps on one model and batch."""

from .attention import BlockAttention
from .freezing import AblateAttention, ZeroFFN
from .operation import Operation
from .patching import PatchTokens
from .pruning import InjectTokens, PruneTokens, WithdrawTokens
from .replacing import ReplaceTokens, ScaleTokens

__all__ = [
    "AblateAttention",
    "BlockAttention",
    "InjectTokens",
    "Operation",
    "PatchTokens",
    "PruneTokens",
    "ReplaceTokens",
    "ScaleTokens",
    "WithdrawTokens",
    "ZeroFFN",
]
