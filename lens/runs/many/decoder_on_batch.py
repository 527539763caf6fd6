"""A decoder before any pass over one batch: its layers, and what is read of them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ...anatomy.anatomy import Anatomy
from ...anatomy.mixer_kinds import MASKED
from ..forward import Request
from ..plan_protocol import PARTS, Touch
from ..run import INSIDE
from .layer_kinds import kinds_of_layers, widest_ffn
from .prefix_tree import Place

# Attention implementations that take a mask of any shape.
MASKABLE = frozenset({"sdpa", "eager"})
# What heads add is refused where what attention adds is changed: so it is read behind that.
_PARTS_OF_SITES = {
    "residual": "entry",
    "values": "mixing",
    "attention_weights": "mixing",
    "head_outputs": "attention",
    "neurons": "ffn",
}


@dataclass(frozen=True, eq=False)
class DecoderOnBatch:
    """A decoder, one batch, and what is read.

    Attributes:
        model: The transformers model.
        anatomy: Where things are in it.
        request: What goes in, and what is read.
        attention: The attention implementation in force.
        touches: Of all conditions.
    """

    model: nn.Module
    anatomy: Anatomy
    request: Request
    attention: str
    touches: Sequence[Touch]

    @cached_property
    def layers(self) -> list[nn.Module]:
        """The layers."""
        return [self.model.get_submodule(path) for path in self.anatomy.layers]

    @cached_property
    def kinds(self) -> list[Hashable]:
        """Keys of the layers, equal for those built alike."""
        return kinds_of_layers(self.model, self.anatomy)

    @cached_property
    def mixers(self) -> list[nn.Module | None]:
        """What mixes tokens in each layer."""
        paths = self.anatomy.mixer
        return [None if path is None else self.model.get_submodule(path) for path in paths]

    @cached_property
    def widest(self) -> list[nn.Module | None]:
        """The part of each layer beside its mixer that has most of the weights."""
        return [widest_ffn(self.model, self.anatomy, layer) for layer in range(len(self.layers))]

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return int(self.request.inputs["input_ids"].shape[1])

    @cached_property
    def real(self) -> Tensor:
        """Positions that are not padding, ``[sample, token]``."""
        return self.request.inputs["attention_mask"].bool().cpu()

    def none(self) -> Tensor:
        """No sequence position, as flags ``[token]``."""
        return torch.zeros(self.length, dtype=torch.bool)

    @cached_property
    def read_at_the_end(self) -> Tensor:
        """Positions whose states behind the last layer somebody reads, ``[token]``."""
        found, end = self.none(), len(self.layers)
        if self.request.said is None:
            return ~found
        found[self.length - self.request.said :] = True
        if any(site["key"] == f"residual.{end}" for site in self.request.sites):
            found[self.request.columns] = True
        for touch in self.touches:
            if touch.layer == end:
                found |= self.flags(touch)
        return found

    def flags(self, touch: Touch) -> Tensor:
        """Positions that a step touches, and those it looks at, ``[token]``."""
        return ~self.none() if touch.looks_around else self._columns(touch)

    def changed_by(self, touches: Iterable[Touch], parts: Collection[int]) -> Tensor:
        """Positions that steps change at some parts of a layer, ``[token]``."""
        found = self.none()
        for touch in touches:
            if PARTS.index(touch.part) in parts and not touch.reads:
                found |= self._columns(touch)
        return found

    def read_by(self, touches: Iterable[Touch]) -> Tensor:
        """Positions that steps read, ``[token]``."""
        found = self.none()
        for touch in touches:
            if touch.reads:
                found |= self._columns(touch)
        return found

    def _columns(self, touch: Touch) -> Tensor:
        none = self.none()
        return ~none if touch.columns is None else none.index_fill(0, touch.columns, True)

    def captured(self, layer: int) -> Tensor:
        """Positions at which something a layer adds is captured, ``[token]``."""
        keys = {site["key"] for site in self.request.sites}
        found = self.none()
        if {f"attention.{layer}", f"ffn.{layer}"} & keys:
            found[self.request.columns] = True
        return found

    def read_inside(self, layer: int, start: Place) -> bool:
        """Whether something inside a layer is read that no pass up to a place has read."""
        return any(
            place_of_site(key)[0] == layer and place_of_site(key) >= start for key in self.inside
        )

    @cached_property
    def inside(self) -> list[str]:
        """Sites inside layers that are read."""
        keys = [site["key"] for site in self.request.sites]
        return [key for key in keys if key.split(".")[0] in INSIDE]

    @property
    def inside_kinds(self) -> frozenset[Hashable]:
        """Which of them are read in which kinds of layers."""
        return frozenset(
            (key.split(".")[0], self.kinds[place_of_site(key)[0]]) for key in self.inside
        )

    def has_keys(self, layer: int) -> bool:
        """Whether a layer mixes tokens by keys and values, behind a mask."""
        return self.anatomy.mixer_kinds[layer] in MASKED and self.attention in MASKABLE

    def is_causal(self, layer: int) -> bool:
        """Whether the kernel hides later keys where a layer is given no mask."""
        causal = bool(getattr(self.mixers[layer], "is_causal", True))
        return causal and self.attention == "sdpa"

    def seen_from(self, layer: int, changed: Tensor, given: Mapping[str, Any]) -> Tensor:
        """Positions that may see one of the changed ones in a layer, ``[token]``.

        By the mask among the layer's arguments, where it is given one.
        """
        kind, everything = self.anatomy.mixer_kinds[layer], ~self.none()
        if kind == "none" or not bool(changed.any()):
            return changed
        if kind not in MASKED or "attention_mask" not in given:
            return everything
        mask = given["attention_mask"]
        if mask is None:
            first = int(changed.int().argmax())
            return torch.arange(self.length) >= first if self.is_causal(layer) else everything
        if not isinstance(mask, Tensor) or mask.shape[-2:] != (self.length, self.length):
            return everything
        seen = mask[..., changed.to(mask.device)]
        if seen.dtype != torch.bool:
            seen = seen > torch.finfo(seen.dtype).min / 2
        return changed | seen.any(-1).flatten(0, -2).any(0).cpu()


def place_of_site(key: str) -> Place:
    """Where a captured site is read: behind what happens at that part of its layer."""
    name, layer = key.split(".")
    return int(layer), PARTS.index(_PARTS_OF_SITES.get(name, name))
