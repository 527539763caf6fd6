"""Tokens that are dropped from a layer on.

A dropped token is dropped for everybody, tokens generated later included, and the others keep their
positions: pruning that renumbers them changes what the model sees even where nothing was pruned
(docs/method.md (a3)).
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, model_validator

from .dropping import DroppedTokens
from .operation import operation
from .phrases import Phrases


@operation
class PruneTokens(DroppedTokens):
    r"""From a layer on, tokens are gone for everybody, as if they had been taken out there.

    In layers $l \ge$ ``layer`` no other token sees the pruned ones, $A_{qk} = 0$ for pruned $k$
    and every $q \ne k$, those generated later included; positions of the others stay as they were.
    That leaves every other token where removing the rows leaves it. Where they are only hidden,
    the states and logits of the pruned tokens themselves are still computed, and mean nothing.
    Source: class pruning and, at a later layer, the early exit, docs/method.md (a3, a6).

    Attributes:
        layer: First layer without them.
        method: ``remove`` takes the rows out before ``layer``: faster, and with a shorter cache
            there and behind. The sequence is then shorter than the prompt, so nothing can be
            captured at the prompt's positions, and no other operation can name tokens in the same
            plan. ``mask`` hides them, which every layer with a mask over keys can do. ``auto``
            removes where the model allows it, and hides where it does not, where the plan has
            other operations, where captures or the logits of all positions are asked for, and in
            :meth:`VisualLM.trace`, inside which states are read. The results are equal;
            ``way`` says which of the two it is.
        positions: ``keep`` leaves every token its position, so that gaps remain, as the paper
            does; ``renumber`` counts those left from 0, which only removal before layer 0 can do,
            so that ``auto`` never hides instead.
    """

    op: Literal["prune-tokens"] = "prune-tokens"
    layer: NonNegativeInt = 0
    positions: Literal["keep", "renumber"] = "keep"

    @model_validator(mode="after")
    def _only_removal_changes_positions(self) -> PruneTokens:
        if self.renumbered and (self.method == "mask" or self.layer != 0):
            raise ValueError(
                "positions='renumber' needs a sequence that never had the tokens: "
                "method='remove', layer=0"
            )
        return self

    @property
    def renumbered(self) -> bool:
        """Whether positions of the other tokens are counted anew."""
        return self.positions == "renumber"

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        places = "count anew from 0" if self.positions == "renumber" else "keep their positions"
        return f"{self.told_drop(phrases)}; all others {places}."
