"""Tokens that come in late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import NonNegativeInt

from ...lens.errors import InputError
from ..layers_and_heads.layers import Layers
from ..program.scope import Subject
from ..program.site import Part, Site
from ..program.steps import Read, Step, Write, Zero
from .dropping import check_layer
from .hiding import hide_from_all
from .operation import Place, TokenOperation, operation
from .phrases import Phrases
from .target import Target

Norm = Literal["raw", "rescaled", "matched"]


@operation
class InjectTokens(TokenOperation):
    r"""Tokens enter late: the layers below see the others only, and at ``layer`` these come in.

    For $l <$ ``layer`` no other token sees them; at ``layer`` their states are replaced by those
    with which they entered layer 0, $h^{layer}_t \leftarrow s_t\, h^0_t$. The others keep their
    positions. Source: vision entry, docs/method.md (a6); at layer 0, ``raw`` changes nothing.

    Where the model adds visual features again between the layers below (DeepStack), the tokens get
    these as well: attention and FFN of the layers below add nothing to them, the model does.

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
        layer = check_layer(self.layer, target.model)
        target.model.anatomy.require("residual")
        hidden = hide_from_all(self, target, range(layer))
        added = self._added(target.model)
        if self.norm == "raw" and (layer == 0 or added):
            return [*hidden, *(self._untouched(target, layer) if added else ())]
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
        source = layer if added else 0
        return [
            *hidden,
            *(self._untouched(target, layer) if added else ()),
            *(Read(site=Site(source, "entry"), slot=slot, **p) for p in self._of(target, source)),
            *(
                Write(site=Site(layer, "entry"), slot=slot, norm=norm, others=others, **p)
                for p in self._of(target, layer)
            ),
        ]

    def _added(self, model: Subject) -> list[int]:
        """Layers up to the one of entry before which the model adds features to the tokens."""
        return [layer for layer in model.anatomy.injections if 0 < layer <= self.layer]

    def _of(self, target: Target, layer: int) -> list[Place]:
        """The tokens of the prompt at a layer."""
        return [place for place in self.places(target, layer) if place["when"] == "prefill"]

    def _untouched(self, target: Target, end: int) -> Iterator[Zero]:
        """What leaves to the tokens, in the layers below, only what the model adds between them."""
        anatomy = target.model.anatomy
        anatomy.require("sublayers")
        for layer in range(end):
            anatomy.require(f"sublayers:{layer}")
            parts: tuple[tuple[Part, str | None], ...] = (
                ("attention", anatomy.attention[layer]),
                ("ffn", anatomy.ffn[layer]),
            )
            for part, path in parts:
                if path is not None:
                    site = Site(layer, part)
                    yield from (Zero(site=site, **place) for place in self._of(target, layer))

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
        added = self._added(phrases.model)
        before = phrases.layers(Layers(tuple(added))) if added else ""
        more = f" and what the model adds to them before {before}" if added else ""
        return (
            f"{hidden if self.layer else f'Nobody misses {tokens}'}; entering {entering}, they get "
            f"the states with which they entered layer 0{more}, {scale}; all others keep their "
            "positions."
        )
