"""Scaling tokens: by a factor, or to the norms of other tokens."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import FiniteFloat, model_validator

from ...lens.errors import InputError
from ..layers_and_heads.layers import FIRST
from ..program.site import Site
from ..program.steps import Read, Scale, Step
from .operation import InLayers, Place, TokenOperation, Tokens, operation
from .phrases import Phrases
from .target import Target


@operation
class ScaleTokens(TokenOperation):
    r"""Scale the residual stream entering each named layer: $h^l_t \leftarrow \alpha_t h^l_t$.

    With ``factor``, $\alpha_t$ is that number for all tokens. With ``norm_of``, $\alpha_t =
    \mathrm{median}_{s \in S} \lVert h^l_s \rVert / \lVert h^l_t \rVert$ over the tokens $S$ of the
    same sample's prompt (of an even number, the lower of the two middle ones). Source: the paper's
    scaling intervention $\alpha\,\mathrm{Projector}(v)$ at layer 0 and the matching of visual to
    text norms, docs/method.md (a7, b5).

    Attributes:
        factor: The same for all tokens; 1 changes no bit.
        norm_of: Tokens whose median norm each token gets, in the selector language.
        layers: Layers before which the stream is scaled.
    """

    op: Literal["scale-tokens"] = "scale-tokens"
    factor: FiniteFloat | None = None
    norm_of: Tokens | None = None
    layers: InLayers = FIRST

    @model_validator(mode="after")
    def _one_of_two(self) -> ScaleTokens:
        if (self.factor is None) == (self.norm_of is None):
            raise ValueError("give a factor, or the tokens whose norm_of is to be matched")
        return self

    def lower(self, target: Target) -> list[Step]:
        """Scale before each layer, after reading there the states whose norm is wanted."""
        anatomy = target.model.anatomy
        anatomy.require("residual")
        steps: list[Step] = []
        for layer in self.layers.indices(anatomy.n_layers):
            entry, places = Site(layer, "entry"), self.places(target, layer)
            if self.factor is not None:
                steps += [Scale(site=entry, factor=self.factor, **place) for place in places]
            elif places:
                steps += self._matched(entry, places, target)
        return steps

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        how = f"multiplied by {self.factor:g}" if self.factor is not None else "scaled"
        if self.norm_of is not None:
            how += f" to the median norm of {phrases.tokens(self.norm_of)} of the same sample"
        return (
            f"The residual stream of {phrases.tokens(self.tokens, self.phase)} entering "
            f"{phrases.layers(self.layers)} is {how}, {phrases.phase(self.phase)}; its direction "
            f"stays{' but for the sign' if (self.factor or 0) < 0 else ''}."
        )

    def _matched(self, entry: Site, places: list[Place], target: Target) -> list[Step]:
        """Read the norms that are wanted, and scale to each sample's median."""
        assert self.norm_of is not None
        rows, columns = np.nonzero(target.selected(self.norm_of, entry.layer))
        samples = np.unique(rows)
        written = np.unique(np.concatenate([place["rows"].numpy() for place in places]))
        if lacking := sorted(set(written.tolist()) - set(samples.tolist())):
            raise InputError(
                f"{self!r}: sample {lacking[0]} has no token of {str(self.norm_of)!r} whose norm "
                "could be taken"
            )
        slot = target.new_slot()
        reading = self.prompt_place(target, (rows, columns), entry.layer)
        steps: list[Step] = [Read(site=entry, slot=slot, **reading)]
        from_group = torch.as_tensor(np.searchsorted(samples, rows))
        for place in places:
            group = torch.as_tensor(np.searchsorted(samples, place["rows"].numpy()))
            steps.append(Scale(site=entry, slot=slot, from_group=from_group, group=group, **place))
        return steps
