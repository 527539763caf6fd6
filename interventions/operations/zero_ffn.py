"""Freezing the FFN."""

from __future__ import annotations

from typing import Literal

from .operation import operation
from .phrases import Phrases
from .skipping import SkippedSublayer


@operation
class ZeroFFN(SkippedSublayer):
    r"""What the FFN computes for the tokens is not added to the residual stream.

    $h_t \leftarrow h_t + 0$ in place of $h_t + \mathrm{FFN}(h_t)$. Source: the paper's visual
    FFN skipping, docs/method.md (a4).
    """

    part = "ffn"
    op: Literal["zero-ffn"] = "zero-ffn"

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        return self.told("What the FFN computes for", "what attention adds stays", phrases)
