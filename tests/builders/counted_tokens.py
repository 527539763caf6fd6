"""A model whose FFNs count the tokens that go through them."""

from __future__ import annotations

import torch

import tiny
from embedlens import VisualLM

# Rows of the batch times tokens that went through each layer's FFN.
COUNTED = [0] * tiny.LAYERS


class Counting(torch.nn.Module):
    """An activation that counts: hooks, and counts kept on it, would keep it from sharing."""

    def __init__(self, inner: torch.nn.Module, layer: int) -> None:
        super().__init__()
        self.inner, self.layer = inner, layer

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        COUNTED[self.layer] += states.shape[:-1].numel()
        return self.inner(states)


def counting_model() -> VisualLM:
    """The tiny model, counting."""
    made = tiny.build()
    for number, layer in enumerate(made.model.model.language_model.layers):
        layer.mlp.act_fn = Counting(layer.mlp.act_fn, number)
    return VisualLM(made.model, made.processor)
