"""What passes leave for later ones to start from, within a bound of memory.

Models write into what their modules return, and add to states in place: so what is kept and what is
handed back are copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..forward import Output, Request
from .prefix_tree import Place
from .some_rows import KeysValues


@dataclass(eq=False)
class Beginning:
    """A pass up to a place in one layer.

    Attributes:
        place: The place, before which everything is as in the pass that left this.
        entering: What the layer before returned; None where that is the first layer.
        mixed: What the layer's token mixer returns; None if that is not known.
        widest: What the widest part of its FFN returned, if known.
        leaving: What the layer returned, if known.
        touched: Rows of that which steps of the pass changed behind the mixer, ``[token]``.
        changed: Rows entering the layer that differ from the untouched pass; None if not known.
        store: What its steps left to one another.
        states: What was captured before the place.
        received: What the layer received; None where that is not needed any more.
    """

    place: Place
    entering: Any
    mixed: Any
    widest: Any
    leaving: Any
    touched: Tensor
    changed: Tensor | None
    store: Mapping[str, Any]
    states: Mapping[str, Tensor]
    received: Any = None

    def later(self, request: Request) -> Request:
        """What of a request is still to be read."""
        return replace(request, sites=[s for s in request.sites if s["key"] not in self.states])

    def joined(self, output: Output, request: Request) -> Output:
        """An output with what was read before, in the order in which it was made."""
        read = {**self.states, **output.states}
        return Output(output.logits, {site["key"]: read[site["key"]] for site in request.sites})


class Memory:
    """How many bytes may be kept, and are."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, size: int) -> bool:
        """Make room, if there is any."""
        if self.held + size > self.most:
            return False
        self.held += size
        return True

    def free(self, size: int) -> None:
        """So much is let go."""
        self.held -= size


@dataclass(eq=False)
class Untouched:
    """The untouched pass, as far as there is room.

    Attributes:
        layers: The layers that are recorded.
        memory: Bounds what is kept.
        leaving: What each layer returned.
        keys_values: Its keys and values.
    """

    layers: range
    memory: Memory
    leaving: dict[int, Any] = field(default_factory=dict)
    keys_values: dict[int, KeysValues] = field(default_factory=dict)

    def record(self, layer: int, output: Any) -> None:
        """Keep what a layer returned."""
        kept = copied(output)
        if layer in self.layers and self.memory.take(size_of(kept)):
            self.leaving[layer] = kept

    def record_keys(self, layer: int, keys_values: KeysValues) -> None:
        """Keep a layer's keys and values."""
        known = layer in self.keys_values
        if layer in self.layers and not known and self.memory.take(size_of(keys_values)):
            self.keys_values[layer] = keys_values

    def clear(self) -> None:
        """Let all go."""
        for kept in (*self.leaving.values(), *self.keys_values.values()):
            self.memory.free(size_of(kept))
        self.leaving.clear()
        self.keys_values.clear()


def size_of(value: Any) -> int:
    """Bytes of the tensors in what a module returned."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 0


def copied(value: Any) -> Any:
    """A copy of what a module returned; without attention weights, which nobody reads here."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (list, tuple):
        first, *rest = value
        kept = (None if isinstance(v, Tensor) and v.ndim == 4 else copied(v) for v in rest)
        return type(value)((copied(first), *kept))
    return value


def first_tensor(output: Any) -> Tensor:
    """The states in what a layer returned."""
    states: Tensor = output[0] if isinstance(output, list | tuple) else output
    return states


def with_first(output: Any, states: Tensor) -> Any:
    """What a layer returned, with other states."""
    if isinstance(output, list | tuple):
        return type(output)((states, *output[1:]))
    return states


def same_rows(found: Tensor, expected: Tensor, flags: Tensor, tolerance: float) -> bool:
    """Whether states ``[sample, token, d]`` are the same at some tokens, each by its own size."""
    if found.shape != expected.shape:
        return False
    if not bool(flags.any()):
        return True
    flags = flags.to(found.device)
    one, other = found[flags].double(), expected[flags].double()
    gap = (one - other).abs().amax(-1)
    size = other.abs().amax(-1)
    return bool(torch.all(gap <= tolerance * size.clamp_min(1e-6 * float(size.max()))))
