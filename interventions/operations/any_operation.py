"""All operations as one type, told apart by their names: what a plan's text can hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .ablate_attention import AblateAttention, ZeroFFN
from .block_attention import BlockAttention
from .patch_tokens import PatchTokens
from .prune_tokens import InjectTokens, PruneTokens, WithdrawTokens
from .replace_tokens import ReplaceTokens, ScaleTokens

AnyOperation = Annotated[
    AblateAttention
    | ZeroFFN
    | PatchTokens
    | ReplaceTokens
    | ScaleTokens
    | BlockAttention
    | PruneTokens
    | InjectTokens
    | WithdrawTokens,
    Field(discriminator="op"),
]
