"""All operations as one type, told apart by their names: what a plan's text can hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .attention import BlockAttention
from .freezing import AblateAttention, ZeroFFN
from .patching import PatchTokens
from .pruning import InjectTokens, PruneTokens, WithdrawTokens
from .replacing import ReplaceTokens, ScaleTokens

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
