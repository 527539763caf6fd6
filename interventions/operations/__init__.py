"""What is declared: operations, each of which lowers itself to steps on one model and batch."""

from .ablate_attention import AblateAttention
from .add_direction import AddDirection
from .block_attention import BlockAttention
from .inject_tokens import InjectTokens
from .operation import OPERATIONS, Operation, operation
from .patch_tokens import PatchTokens
from .prune_tokens import PruneTokens
from .replace_tokens import ReplaceTokens
from .scale_attention import ScaleAttention
from .scale_tokens import ScaleTokens
from .withdraw_tokens import WithdrawTokens
from .zero_ffn import ZeroFFN

__all__ = [
    "OPERATIONS",
    "AblateAttention",
    "AddDirection",
    "BlockAttention",
    "InjectTokens",
    "Operation",
    "PatchTokens",
    "PruneTokens",
    "ReplaceTokens",
    "ScaleAttention",
    "ScaleTokens",
    "WithdrawTokens",
    "ZeroFFN",
    "operation",
]
