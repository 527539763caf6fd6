"""Steering: a direction added to the residual stream."""

from __future__ import annotations

from typing import Literal

from pydantic import FiniteFloat

from ..layers_and_heads.layers import FIRST
from ..program.site import Site
from ..program.steps import Add, Step
from .borrowing import DonorName
from .needs import Need, Vector
from .operation import InLayers, TokenOperation, operation
from .phrases import Phrases
from .target import Target


@operation
class AddDirection(TokenOperation):
    r"""Add a vector to the residual stream entering each named layer: $h^l_t += \alpha v^l$.

    It is added to what is in force there, other operations' changes included. The vector comes
    from :meth:`Plan.given` as a tensor, ``[d]`` or ``[n_layers + 1, d]``; for instance one that
    :func:`~embedlens.directions` made. Source: activation addition (Turner et al., 2023),
    docs/method.md (e).

    Attributes:
        vector: Name of the vector $v$.
        factor: $\alpha$; 0 changes no bit.
        layers: Layers before which it is added.
    """

    op: Literal["add-direction"] = "add-direction"
    vector: DonorName
    factor: FiniteFloat = 1.0
    layers: InLayers = FIRST

    def needs(self) -> tuple[Need, ...]:
        """The vector."""
        return (Vector(self.vector),)

    def lower(self, target: Target) -> list[Step]:
        """Add before each layer."""
        anatomy = target.model.anatomy
        anatomy.require("residual")
        vectors = target.vectors[self.vector]
        return [
            Add(
                site=Site(layer, "entry"),
                values=vectors[layer].unsqueeze(0),
                factor=self.factor,
                **place,
            )
            for layer in self.layers.indices(anatomy.n_layers)
            for place in self.places(target, layer)
        ]

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        return (
            f"{self.factor:g} times the vector {self.vector!r} is added to the residual stream of "
            f"{phrases.tokens(self.tokens, self.phase)} entering {phrases.layers(self.layers)}, "
            f"{phrases.phase(self.phase)}."
        )
