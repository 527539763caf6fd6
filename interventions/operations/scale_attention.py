"""Scaling attention weights: some tokens see some others more, or less, in chosen heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, FiniteFloat, model_validator

from ...lens.errors import InputError
from ...lens.selectors.selector_types import Selection
from ..layers_and_heads.layers import ALL
from ..program.steps import ScaleWeights, Step
from .hiding import chosen_by_layer, hide, some_pair
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
        given = [self.queries, self.keys, *([] if self.give_to is None else [self.give_to])]
        steps: list[Step] = []
        for layers, (queries, keys, *getting) in chosen_by_layer(given, self.layers, target):
            meant = self.in_phase(queries, target)
            if some_pair(self, meant, keys, target, "scaled"):
                hidden = hide(self, target, layers, meant, keys, self.heads)
                takers = self._takers(keys, getting)
                for step in hidden:
                    target.check_attention("weights", step.site.layer, self)
                    held = {field.name: getattr(step, field.name) for field in fields(step)}
                    steps.append(ScaleWeights(factor=self.factor, **takers, **held))
        return [] if self.factor == 1 else steps

    def _takers(self, keys: Selection, getting: Sequence[Selection]) -> dict[str, Any]:
        """The tokens that get what is freed, if any are named."""
        if not getting:
            return {}
        (others,) = getting
        if (others.prompt & keys.prompt).any() or (others.generated & keys.generated).any():
            raise InputError(
                f"{self!r}: some token is among those that are scaled and those that get what "
                f"is freed: give_to={f'({self.give_to}) & ~({self.keys})'!r}"
            )
        return {
            "takers": torch.as_tensor(others.prompt),
            "later_takers": torch.as_tensor(others.generated),
        }

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
