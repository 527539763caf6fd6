"""Torch hooks that zero or patch sublayers of any tiny family, found by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from builders.copies import layers_of
from families.sublayers import KNOWN, LIKE, child
from oracles.torch_hooks import attached, entering, leaving

EDITS: dict[str, tuple[dict[str, tuple[int, ...]], tuple[int, int] | None]] = {
    "attention": ({"attention": (1,)}, None),
    "ffn": ({"ffn": (0, 2)}, None),
    "both": ({"attention": (0, 1), "ffn": (0, 1)}, None),
    "patch": ({}, (1, 2)),
}


@contextmanager
def edited(model: Any, name: str, edit: str, where: Tensor) -> Iterator[None]:
    """Torch hooks that do the same at ``where`` [sample, token], in passes of that length."""
    zeroed, patch = EDITS[edit]
    attention, ffn = KNOWN.get(name) or KNOWN[LIKE[name]]
    layers, length = layers_of(model, name), where.shape[1]
    handles, kept = [], {}

    def zero(states: Tensor) -> Tensor:
        if states.shape[:-1].numel() != where.numel():
            return states
        return torch.where(where.reshape(*states.shape[:-1], 1), 0.0, states)

    def read(states: Tensor) -> Tensor:
        if states.shape[1] == length:
            kept["states"] = states.clone()
        return states

    def write(states: Tensor) -> Tensor:
        whole = states.shape[1] == length
        return torch.where(where[..., None], kept["states"], states) if whole else states

    for kind, names in (("attention", attention), ("ffn", ffn)):
        for index in zeroed.get(kind, ()):
            handles.append(child(layers[index], names).register_forward_hook(leaving(zero)))
    if patch:
        for index, change in zip(patch, (read, write), strict=True):
            hook = entering(change)
            handles.append(layers[index].register_forward_pre_hook(hook, with_kwargs=True))
    with attached(handles):
        yield
