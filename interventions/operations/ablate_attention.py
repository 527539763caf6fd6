"""Freezing attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..program.site import Site
from ..program.steps import Step, ZeroHeads
from .operation import InHeads, operation
from .phrases import Phrases
from .skipping import SkippedSublayer
from .target import Target


@operation
class AblateAttention(SkippedSublayer):
    r"""Freeze: what the tokens gather by attention is not added to the residual stream.

    $h_t \leftarrow h_t + 0$ in place of $h_t + \mathrm{Attn}(h)_t$ for the chosen tokens $t$.
    Their keys and values are still computed, and stay readable by every other token, so this is
    no knockout. Source: the paper's visual attention skipping, docs/method.md (a4),
    without that code's special rule for layer 0.

    With ``heads`` only what those heads gather is not added: it is made zero where the output
    projection takes it, whose bias, where it has one, belongs to no head and stays.

    Attributes:
        heads: Heads of each named layer; all of them, and the bias, when None.
    """

    part = "attention"
    op: Literal["ablate-attention"] = "ablate-attention"
    heads: InHeads | None = None

    def rests_on_anatomy(self) -> bool:
        """Not where heads are named, which are counted in the weights."""
        return self.heads is None and super().rests_on_anatomy()

    def zeroed(self, target: Target, layer: int) -> Sequence[Step]:
        """Everything that attention adds, or the heads' share of it."""
        some = target.heads(self, layer, self.heads)
        if not some:
            return super().zeroed(target, layer)
        site = Site(layer, "heads")
        return [ZeroHeads(site=site, **some, **place) for place in self.places(target, layer)]

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        stays = "their keys and values are still computed and stay readable by every other token"
        return self.told(
            f"What attention{phrases.in_heads(self.heads)} gathers for", stays, phrases
        )
