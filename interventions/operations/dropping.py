"""Dropping tokens from a layer on: whether one model's sequence can be shortened, and the steps.

A shorter sequence is the same to the other tokens only where nothing about the model counts rows,
and only if nobody looks for a token at its old place. Where one of these fails, an operation that
leaves the choice open has to hide the tokens instead.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from ...lens.anatomy.traits import traits_counting_rows
from ...lens.errors import InputError, Unsupported
from ...lens.runs.plan_protocol import Pass
from ..engines.engine import engine_of
from ..layers_and_heads.layers import Layers
from ..program.scope import Subject
from ..program.site import Site
from ..program.steps import Drop, Step, When
from .hiding import hide_from_all, selected
from .operation import TokenOperation
from .phrases import Phrases
from .target import Target

Method = Literal["auto", "mask", "remove"]


class DropWay(NamedTuple):
    """How tokens are dropped."""

    method: Literal["mask", "remove"]  # ``remove`` shortens the sequence, ``mask`` hides them
    reason: str = ""  # why they are hidden, where the operation does not say ``mask`` itself


class DroppedTokens(TokenOperation, ABC):
    """An operation that drops tokens from a layer on, for everybody.

    Attributes:
        layer: First layer without them.
        method: ``remove``, ``mask`` or ``auto``, as in :class:`PruneTokens`.
    """

    layer: NonNegativeInt
    method: Method = "auto"
    phase: Literal["all"] = "all"

    @property
    def renumbered(self) -> bool:
        """Whether positions of the other tokens are counted anew."""
        return False

    def way(self, model: Subject, during: Pass | None = None, *, alone: bool = True) -> DropWay:
        """How the tokens are dropped in this model, and why they are hidden where they are.

        ``during`` is a generation when None; ``alone`` whether the plan has no other operation.
        Refused where they are to be removed, and this pass or model needs them.
        """
        check_layer(self.layer, model)
        if self.method == "mask":
            return DropWay("mask")
        found = obstacle(
            repr(self),
            self.layer,
            model,
            during or Pass("generation"),
            renumber=self.renumbered,
            alone=alone,
        )
        # Positions cannot be counted anew around tokens that are only hidden.
        if found is not None and (self.method == "remove" or self.renumbered):
            raise found
        if found is not None:
            return DropWay("mask", str(found).removeprefix(f"{self!r}").lstrip(": "))
        traced = during is not None and during.traced
        if self.method == "auto" and traced and not self.renumbered:
            return DropWay("mask", "inside an open trace states are read at the prompt's positions")
        return DropWay("remove")

    @property
    def choosing_layer(self) -> int:
        """The layer from which on they are there, or are not."""
        return self.layer

    def absent(self, n_layers: int) -> range:
        """From ``layer`` on."""
        return range(self.layer, n_layers)

    def told_drop(self, phrases: Phrases) -> str:
        """That the tokens are dropped, where and how, in words; in a generation, and alone."""
        way = self.way(phrases.model)
        how = "their rows are taken out" if way.method == "remove" else "they are hidden"
        if self.method == "auto" and way.method == "remove":
            how += ", or hidden in a pass that needs their places and beside other operations"
        elif way.reason:
            how += f", because {way.reason}"
        left = phrases.span(range(self.layer, phrases.model.n_layers))
        below = ", while the layers below have them" if self.layer else ""
        return (
            f"In {left} {phrases.tokens(self.tokens)} are gone for everybody, for tokens "
            f"generated later as well{below} ({how})"
        )

    def lower(self, target: Target) -> Sequence[Step]:
        """Drop the tokens before ``layer``, or hide them from all others from there on."""
        dropped = selected(self, target)
        if dropped[:, -1].any():
            sample = int(np.flatnonzero(dropped[:, -1])[0])
            raise InputError(
                f"{self!r}: the last token of sample {sample} is among {str(self.tokens)!r}, and "
                "what the model writes is read off it: leave it out, for instance with & ~last"
            )
        if self.way(target.model, target.during, alone=target.alone).method == "remove":
            return self._drop(dropped, target)
        return hide_from_all(self, target, range(self.layer, target.model.n_layers))

    def _drop(self, dropped: NDArray[np.bool_], target: Target) -> list[Step]:
        """The steps that shorten the sequence; before layer 0 the decoder's own arguments."""
        if not dropped.any():
            return []
        left = target.real & ~dropped
        # A stable sort brings what is left to the end, in its order.
        longest = int(left.sum(1).max())
        take = np.argsort(left, axis=1, kind="stable")[:, -longest:]
        kept = torch.as_tensor(np.take_along_axis(left, take, axis=1))
        phases: tuple[When, ...] = ("prefill", "decode")
        return [
            Drop(
                site=Site(self.layer, "entry" if self.layer else "decoder"),
                when=when,
                by=repr(self),
                length=target.batch.length,
                behind=target.during.continuation,
                take=torch.as_tensor(take),
                kept=kept,
                renumber=self.renumbered,
            )
            for when in phases
            if when == "prefill" or target.during.kind == "generation"
        ]


def check_layer(layer: int, model: Subject) -> int:
    """A layer that the model has."""
    return Layers((layer,)).indices(model.n_layers)[0]


def obstacle(
    by: str, layer: int, model: Subject, during: Pass, *, renumber: bool, alone: bool
) -> InputError | Unsupported | None:
    """What keeps the sequence from being shortened before a layer; None where it can be."""
    if not alone:
        return InputError(
            f"{by} shortens the sequence, in which the other operations of this plan could not "
            "find their tokens: use method='mask'"
        )
    if during.positions:
        return InputError(
            f"{by} leaves a sequence shorter than the prompt, so neither states nor the logits of "
            "all its positions can be returned: use method='mask'"
        )
    anatomy = model.anatomy
    if counted := traits_counting_rows(anatomy.capabilities, between_layers=layer > 0):
        return Unsupported(
            f"{by}: this model has {', '.join(counted)}, where a shorter sequence changes what the "
            "tokens left can see: use method='mask'"
        )
    if layer == 0 and "embeds_itself" in anatomy.capabilities:
        return Unsupported(
            f"{by}: this model's decoder embeds its input itself, so rows cannot be taken out "
            "before it: use method='mask'"
        )
    if renumber and "mrope" in anatomy.capabilities:
        return Unsupported(
            f"{by}: this model's positions are places in the image as well, which cannot be "
            "counted anew: use positions='keep'"
        )
    return _between(by, layer, model) if layer else None


def _between(by: str, layer: int, model: Subject) -> Unsupported | None:
    """What keeps the sequence from being shortened between two layers of a model."""
    anatomy = model.anatomy
    if max(anatomy.injections, default=0) > layer:
        return Unsupported(
            f"{by}: this model adds visual features again before layer {max(anatomy.injections)}, "
            "and would not find the places of those taken out: use method='mask'"
        )
    if anatomy.last_token_layers:
        return Unsupported(
            f"{by}: later layers of this model share keys and values of earlier ones, whose "
            "sequence would be longer: use method='mask'"
        )
    try:
        anatomy.require("residual")
        for index in range(layer, anatomy.n_layers):
            # A layer that mixes no tokens has no use for a mask.
            if anatomy.mixer_kinds[index] != "none":
                engine_of(model.nn).check_attention("mask", index, model, by)
    except Unsupported as reason:
        return reason
    return None
