"""Freezing: what a sublayer computes for some tokens is not added to the residual stream."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import ClassVar, Literal

from ...lens.errors import Unsupported
from ...lens.selectors.scores import scored_in
from ..layers_and_heads.layers import ALL
from ..program.site import Site
from ..program.steps import Step, Zero
from .operation import InLayers, TokenOperation
from .phrases import Phrases
from .target import Target


class SkippedSublayer(TokenOperation, ABC):
    """An operation in which one sublayer adds nothing for some tokens."""

    part: ClassVar[Literal["attention", "ffn"]]
    layers: InLayers = ALL

    def lower(self, target: Target) -> list[Step]:
        """Zero what the sublayer adds at the chosen tokens, layer by layer."""
        anatomy = target.model.anatomy
        addends = {"attention": anatomy.attention, "ffn": anatomy.ffn}[self.part]
        anatomy.require("sublayers")
        steps: list[Step] = []
        for layer in self.layers.indices(len(addends)):
            anatomy.require(f"sublayers:{layer}")
            if addends[layer] is not None:
                steps += self.zeroed(target, layer)
            elif self.layers != ALL:
                raise Unsupported(
                    f"{self!r}: layer {layer} of this model has no such part (its layers have "
                    "one sublayer each); name the layers that have it, or layers='all'"
                )
        return steps

    def rests_on_anatomy(self) -> bool:
        """So they do, unless tokens are chosen by a score, which takes a pass."""
        return not scored_in(self.tokens)

    def zeroed(self, target: Target, layer: int) -> Sequence[Step]:
        """What is made zero in one layer."""
        site = Site(layer, self.part)
        return [Zero(site=site, **place) for place in self.places(target, layer)]

    def told(self, what: str, stays: str, phrases: Phrases) -> str:
        """The sentence of what is not added, and of what stays."""
        return (
            f"{what} {phrases.tokens(self.tokens, self.phase)} is not added to the residual stream "
            f"in {phrases.layers(self.layers)}, {phrases.phase(self.phase)}; {stays}."
        )
