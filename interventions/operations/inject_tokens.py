"""Tokens that come in late."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt

from ...lens.errors import InputError
from ..program.site import Site
from ..program.steps import Read, Step, Write
from .dropping import check_layer
from .hiding import hide_from_all
from .operation import TokenOperation, operation
from .phrases import Phrases
from .target import Target

Norm = Literal["raw", "rescaled", "matched"]


@operation
class InjectTokens(TokenOperation):
    r"""Tokens enter late: the layers below see the others only, and at ``layer`` these come in.

    For $l <$ ``layer`` no other token sees them; at ``layer`` their states are replaced by those
    with which they entered layer 0, $h^{layer}_t \leftarrow s_t\, h^0_t$. The others keep their
    positions. Source: vision entry, docs/method.md (a6); at layer 0, ``raw`` changes nothing.

    Attributes:
        layer: Layer at which they enter.
        norm: ``raw`` takes the states as they are, $s_t = 1$. ``rescaled`` gives the tokens of a
            sample one common factor, the median norm of the other tokens' states at ``layer`` over
            the median norm of theirs. ``matched`` gives each of them that median norm.
    """

    op: Literal["inject-tokens"] = "inject-tokens"
    layer: NonNegativeInt
    norm: Norm = "raw"
    phase: Literal["all"] = "all"

    @property
    def choosing_layer(self) -> int:
        """The layer from which on they are there, or are not."""
        return self.layer

    def absent(self, n_layers: int) -> range:
        """Below ``layer``."""
        return range(self.layer)

    def lower(self, target: Target) -> list[Step]:
        """Hide them below, keep the states they entered with, and write those at ``layer``."""
        anatomy = target.model.anatomy
        layer = check_layer(self.layer, target.model)
        if any(0 < added <= layer for added in anatomy.injections):
            anatomy.require("patch_across")
        anatomy.require("residual")
        hidden = hide_from_all(self, target, range(layer))
        if layer == 0 and self.norm == "raw":
            return []
        norm, others = None, None
        if self.norm != "raw":
            chosen = target.selected(self.tokens, layer)
            rest = target.real & ~chosen
            if empty := np.flatnonzero(chosen.any(1) & ~rest.any(1)).tolist():
                raise InputError(
                    f"{self!r}: sample {empty[0]} has no other token whose norm could be taken"
                )
            norm, others = self.norm, torch.as_tensor(rest)
        slot = target.new_slot()
        reading = [p for p in self.places(target, 0) if p["when"] == "prefill"]
        writing = [p for p in self.places(target, layer) if p["when"] == "prefill"]
        entry = Site(layer, "entry")
        return [
            *hidden,
            *(Read(site=Site(0, "entry"), slot=slot, **place) for place in reading),
            *(Write(site=entry, slot=slot, norm=norm, others=others, **p) for p in writing),
        ]

    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""
        entering, tokens = phrases.layer(self.layer), phrases.tokens(self.tokens)
        if self.layer == 0 and self.norm == "raw":
            return f"Entering layer 0, as they do anyway, are {tokens}: nothing changes."
        scale = {
            "raw": "as they are",
            "rescaled": "with one factor per sample, so that their median norm is the others'",
            "matched": "each with the median norm of the others",
        }[self.norm]
        hidden = f"In {phrases.span(range(self.layer))} nobody sees {tokens}"
        return (
            f"{hidden if self.layer else f'Nobody misses {tokens}'}; entering {entering}, they get "
            f"the states with which they entered layer 0, {scale}; all others keep their positions."
        )
