"""Scaling attention weights: some tokens see some others more, or less, in chosen heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, FiniteFloat, model_validator

from ...lens.errors import InputError
from ..program.steps import ScaleWeights, Step
from ..selectors.layers import ALL
from .hiding import attending_layers, hide, some_pair
from .operation import InHeads, InLayers, Operation, Tokens, operation
from .phrases import Phrases
from .target import Target


@operation
class ScaleAttention(Operation):
    r"""Scale what the queries give to the keys, behind the softmax.

    $A_{qk} \leftarrow \alpha A_{qk}$ for every pair of a query $q$ and a key $k$. Without
    ``give_to`` rows no longer sum to 1. With it what is freed goes to those tokens $G$ in
    proportion to their own weights, $A_{qg} \leftarrow A_{qg} (1 + (1 - \alpha) \sum_k A_{qk} /
    \sum_{g' \in G} A_{qg'})$, in each head by itself. Source: redistribution of what visual sinks
    get (VAR), docs/method.md (e). Where several operations change the weights of one layer, each
    goes on from those that the one before it left; what :class:`BlockAttention` hides with
    ``renormalise`` is hidden before.

    In a generation ``phase`` says which queries are meant, as in :class:`BlockAttention`.

    Attributes:
        queries: Tokens that see more or less, in the selector language.
        keys: Tokens that are seen more or less by them.
        factor: $\alpha$, at least 0; 1 changes no bit.
        give_to: Tokens that get what is freed; nobody when None. With them ``factor`` is at most 1.
        layers: Layers in which.
        heads: Heads of each of these layers in which; all when None.
    """

    op: Literal["scale-attention"] = "scale-attention"
    queries: Tokens
    keys: Tokens
    factor: Annotated[FiniteFloat, Field(ge=0)]
    give_to: Tokens | None = None
    layers: InLayers = ALL
    heads: InHeads | None = None

    @model_validator(mode="after")
    def _something_is_freed(self) -> ScaleAttention:
        if self.give_to is not None and self.factor > 1:
            raise ValueError(
                "a factor above 1 frees nothing that could be given: leave out give_to, or scale "
                "the other tokens down and give to these"
            )
        return self

    def lower(self, target: Target) -> Sequence[Step]:
        """One edit of the weights per layer."""
        keys = self.keys.select(target.batch)
        meant = self.in_phase(self.queries.select(target.batch), target)
        if not some_pair(self, meant, keys, target, "scaled"):
            return []
        takers: dict[str, Any] = {}
        if self.give_to is not None:
            getting = self.give_to.select(target.batch)
            prompt, later = getting.prompt & keys.prompt, getting.generated & keys.generated
            if prompt.any() or later.any():
                raise InputError(
                    f"{self!r}: some token is among those that are scaled and those that get what "
                    f"is freed: give_to={f'({self.give_to}) & ~({self.keys})'!r}"
                )
            takers["takers"] = torch.as_tensor(getting.prompt)
            takers["later_takers"] = torch.as_tensor(getting.generated)
        if self.factor == 1:
            return []
        hidden = hide(self, target, attending_layers(self.layers, target), meant, keys, self.heads)
        for step in hidden:
            target.check_attention("weights", step.site.layer, self)
        return [
            ScaleWeights(
                factor=self.factor, **takers, **{f.name: getattr(s, f.name) for f in fields(s)}
            )
            for s in hidden
        ]

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        rest = "and their weights no longer sum to 1"
        if self.give_to is not None:
            rest = (
                f"and what is freed goes to {phrases.tokens(self.give_to)} in proportion to their "
                "own weights"
            )
        return (
            f"In {phrases.layers(self.layers)}, {phrases.phase(self.phase)}, what "
            f"{phrases.tokens(self.queries, self.phase)} give to {phrases.tokens(self.keys)}"
            f"{phrases.in_heads(self.heads)} is multiplied by {self.factor:g}, {rest}."
        )
