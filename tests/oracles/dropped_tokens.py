"""An oracle for tokens that leave or come in late: decoder layers called one by one, rows cut out.

A plain eager copy runs once, every argument of every layer is kept, and the layers are then called
by hand on shortened states with every argument shortened alike: masks, rotary tables, positions.
One sample at a time, so that nothing is padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oracles.torch_hooks import attached, entered


def shortened(value: Any, length: int, keep: Tensor) -> Any:
    """A layer's argument with the kept rows of every dimension as long as the sequence."""
    if isinstance(value, Tensor):
        for dim, size in enumerate(value.shape):
            if size == length:
                value = value.index_select(dim, keep)
        return value
    if isinstance(value, tuple | list):
        return type(value)(shortened(part, length, keep) for part in value)
    if isinstance(value, dict):
        return {key: shortened(part, length, keep) for key, part in value.items()}
    return value


class ByHand:
    """The decoder of one plain model over one sample."""

    def __init__(self, model: Any, decoder: Any, inputs: Mapping[str, Tensor]) -> None:
        self.layers, self.norm, self.head = decoder.layers, decoder.norm, model.lm_head
        self.length = inputs["input_ids"].shape[1]
        self.arguments: list[dict[str, Any]] = []
        states: list[Tensor] = []

        def keep(_: Any, args: Any, kwargs: Any) -> None:
            assert len(args) <= 1
            states.append(entered(args, kwargs))
            left_out = ("hidden_states", "past_key_values", "use_cache")
            self.arguments.append({k: v for k, v in kwargs.items() if k not in left_out})

        handles = [x.register_forward_pre_hook(keep, with_kwargs=True) for x in self.layers]
        with attached(handles), torch.no_grad():
            self.clean = model(**inputs, use_cache=False).logits
        self.entering = states
        self.entry = states[0]

    @torch.no_grad()
    def through(self, states: Tensor, first: int, end: int, keep: Tensor) -> Tensor:
        """Kept rows ``[1, kept, d]`` led through layers ``first`` to ``end - 1``."""
        for layer, arguments in zip(self.layers[first:end], self.arguments[first:end], strict=True):
            out = layer(states, **shortened(arguments, self.length, keep))
            states = out[0] if isinstance(out, tuple) else out
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Logits of states behind the last layer."""
        with torch.no_grad():
            made: Tensor = self.head(self.norm(states))
        return made

    def without(self, gone: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """States behind the last layer with positions removed at a layer, and those positions."""
        everyone = torch.arange(self.length)
        kept = everyone[~gone]
        states = self.entering[layer][:, kept]
        return self.through(states, layer, len(self.layers), kept), kept

    def late(self, late: Tensor, layer: int, norm: str = "raw") -> Tensor:
        """States behind the last layer with positions coming in at a layer."""
        everyone = torch.arange(self.length)
        early = everyone[~late]
        states = self.through(self.entry[:, early], 0, layer, early)
        coming = self.entry[:, late]
        wanted = states[0].norm(dim=-1).median()
        if norm == "rescaled":
            coming = coming * wanted / coming[0].norm(dim=-1).median()
        elif norm == "matched":
            coming = coming / coming.norm(dim=-1, keepdim=True) * wanted
        whole = torch.empty_like(self.entry)
        whole[:, early], whole[:, late] = states, coming
        return self.through(whole, layer, len(self.layers), everyone)
