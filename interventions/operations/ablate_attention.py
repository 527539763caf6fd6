"""Freezing attention."""

from __future__ import annotations

from typing import Literal

from .operation import operation
from .phrases import Phrases
from .skipping import SkippedSublayer


@operation
class AblateAttention(SkippedSublayer):
    r"""Freeze: what the tokens gather by attention is not added to the residual stream.

    $h_t \leftarrow h_t + 0$ in place of $h_t + \mathrm{Attn}(h)_t$ for the chosen tokens $t$.
    Their keys and values are still computed, and stay readable by every other token, so this is
    no knockout. Source: the paper's visual attention skipping, docs/method.md (a4),
    without that code's special rule for layer 0.
    """

    part = "attention"
    op: Literal["ablate-attention"] = "ablate-attention"

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        stays = "their keys and values are still computed and stay readable by every other token"
        return self.told("What attention gathers for", stays, phrases)
