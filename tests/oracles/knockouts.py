"""An oracle for blocked attention that touches no mask: weights are zeroed behind the softmax.

A plain copy of a model computes with the eager implementation, whose softmax is swapped while one
of its token mixers runs. Whole sequences only: what a generation should have written is recomputed
without a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from oracles.torch_hooks import attached

MIXERS = ("self_attn", "attention", "attn", "mixer")


def mixers_of(model: Any, layers: Any) -> list[Any]:
    """The token mixers of decoder layers, by the names that models give them."""
    found = []
    for layer in layers:
        named = [m for n in MIXERS if (m := getattr(layer, n, None)) is not None]
        found.append(named[0] if named else None)
    return found


def longer(name: str, inputs: Mapping[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Inputs with generated ids ``[sample, new]`` behind every prompt."""
    made = dict(inputs)
    for key, tensor in inputs.items():
        if tensor.shape != inputs["input_ids"].shape:
            continue
        # PaliGemma sees its prompt in both directions, and calls what it writes type 1.
        kind = 1 if key == "attention_mask" or name.startswith("paligemma") else 0
        tail = ids if key == "input_ids" else torch.full_like(ids, kind)
        made[key] = torch.cat([tensor, tail.to(tensor)], 1)
    return made


@contextmanager
def knocked_out(
    mixers: Mapping[Any, Tensor], *, renormalise: bool = True, collapse_to: Tensor | None = None
) -> Iterator[None]:
    """Zero attention weights of some mixers.

    Args:
        mixers: Per mixer, what is blocked, ``[sample, query, key]`` bool.
        renormalise: Whether the weights left are scaled to sum to 1.
        collapse_to: Position ``[sample]`` that gets the blocked weights instead.
    """
    running: list[Tensor] = []
    calls = []
    original = torch.nn.functional.softmax

    def softmax(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = original(scores, *args, **kwargs)
        if not running or scores.ndim != 4:
            return weights
        calls.append(1)
        blocked = running[-1][:, None]
        assert weights.shape[-2:] == blocked.shape[-2:]
        kept = weights.masked_fill(blocked, 0.0)
        if collapse_to is not None:
            mass = (weights - kept).sum(-1)
            place = collapse_to[:, None, None, None].expand(*mass.shape, 1)
            return kept.scatter_add(-1, place, mass[..., None])
        return kept / kept.sum(-1, keepdim=True) if renormalise else kept

    def enter(module: Any, _: Any) -> None:
        running.append(mixers[module])

    def leave(*_: Any) -> None:
        running.pop()

    handles = [m.register_forward_pre_hook(enter) for m in mixers]
    handles += [m.register_forward_hook(leave) for m in mixers]
    swapped = mock.patch.object(torch.nn.functional, "softmax", softmax)
    with attached(handles), swapped, torch.no_grad():
        yield
    assert not mixers or calls, "no softmax ran inside the mixers"
