"""Tokens that the layers below have, and that are dropped at a layer."""

from __future__ import annotations

from typing import Literal

from .dropping import DroppedTokens
from .operation import operation
from .phrases import Phrases


@operation
class WithdrawTokens(DroppedTokens):
    r"""Tokens leave at a layer: those below have them, from ``layer`` on nobody sees them.

    Like :class:`PruneTokens` at that layer. Source: the early exit, docs/method.md (a6), after VTW.

    Attributes:
        layer: First layer without them.
        method: ``remove``, ``mask`` or ``auto``, as in :class:`PruneTokens`.
    """

    op: Literal["withdraw-tokens"] = "withdraw-tokens"

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        return f"{self.told_drop(phrases)}; all others keep their positions."
