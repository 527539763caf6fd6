"""Knocking out attention: some tokens cannot see some others, in chosen layers.

A layer without a mask over keys, where what was blocked elsewhere would leak through, refuses the
whole operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Literal

from pydantic import model_validator

from ..layers_and_heads.layers import ALL
from ..program.steps import Hide, Step, ZeroWeights
from .hiding import chosen_by_layer, hide, some_pair
from .operation import InHeads, InLayers, Operation, Tokens, operation
from .phrases import Phrases
from .target import Target


@operation
class BlockAttention(Operation):
    r"""Knockout: the queries cannot see the keys.

    With ``renormalise`` the score of every pair of a query $q$ and a key $k$ is set to $-\infty$
    before the softmax: $A_{qk} \leftarrow 0$, and what the other keys get grows so that
    $\sum_k A_{qk} = 1$ as before. Source: attention knockout over a window of layers,
    docs/method.md (e), cross-modal information flow. Without it $A_{qk} \leftarrow 0$ behind the
    softmax, and the row sums to less than 1: the paper's knockouts, docs/method.md (a5). With
    ``collapse`` the weight taken goes to the first of the keys $k_0$, $A_{qk_0} \leftarrow \sum_k
    A_{qk}$: what the paper does to text queries and visual keys in layer 0, docs/method.md (a4).
    Where several operations without ``renormalise`` meet in one layer, each edits the weights that
    the one before it left; what is hidden with ``renormalise`` is hidden before, wherever it stands
    in the plan.

    In a generation ``phase`` says which queries are meant: those of the prompt, those generated, or
    both. Selected keys stay hidden whenever their query is meant; generated tokens belong to the
    keys where the selector holds them (``text`` does, ``visual`` does not).

    Attributes:
        queries: Tokens that cannot see, in the selector language.
        keys: Tokens that cannot be seen by them.
        layers: Layers in which they cannot.
        heads: Heads of each of these layers in which they cannot; all when None.
        renormalise: Whether the weights that are left are scaled to sum to 1.
        collapse: Whether the weights taken go to the first selected key of the sample.
    """

    op: Literal["block-attention"] = "block-attention"
    queries: Tokens
    keys: Tokens
    layers: InLayers = ALL
    heads: InHeads | None = None
    renormalise: bool = True
    collapse: bool = False

    @model_validator(mode="after")
    def _one_of_two(self) -> BlockAttention:
        if self.collapse and self.renormalise:
            raise ValueError(
                "collapse=True gives the weights that are taken to the first key, so there is "
                "nothing to renormalise: set renormalise=False too"
            )
        return self

    def lower(self, target: Target) -> Sequence[Step]:
        """One edited mask per layer, or one edit of its weights."""
        steps: list[Hide] = []
        for layers, (queries, keys) in chosen_by_layer(
            (self.queries, self.keys), self.layers, target
        ):
            meant = self.in_phase(queries, target)
            if some_pair(self, meant, keys, target, "blocked"):
                steps += hide(self, target, layers, meant, keys, self.heads)
        if self.renormalise:
            return steps
        for step in steps:
            target.check_attention("weights", step.site.layer, self)
        return [
            ZeroWeights(collapse=self.collapse, **{f.name: getattr(s, f.name) for f in fields(s)})
            for s in steps
        ]

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        how = "and what they gather from all other keys grows to make up for it"
        if self.collapse:
            how = "and the weight taken goes to the first of those keys"
        elif not self.renormalise:
            how = "and their weights sum to less than 1, since nothing makes up for it"
        return (
            f"In {phrases.layers(self.layers)}, {phrases.phase(self.phase)}, "
            f"{phrases.tokens(self.queries, self.phase)} cannot see {phrases.tokens(self.keys)}"
            f"{phrases.in_heads(self.heads)}, {how}; every other token sees those as before."
        )
