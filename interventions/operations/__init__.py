"""What is declared: operations, each of which lowers itself to steps on one model and batch."""

from .ablate_attention import AblateAttention, ZeroFFN
from .block_attention import BlockAttention
from .operation import Operation
from .patch_tokens import PatchTokens
from .prune_tokens import InjectTokens, PruneTokens, WithdrawTokens
from .replace_tokens import ReplaceTokens, ScaleTokens

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
