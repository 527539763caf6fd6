"""Scores read off a plain eager model's own outputs, and the best tokens picked one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def attention_scores(
    plain: Any, inputs: Mapping[str, Tensor], layer: int, queries: Tensor
) -> Tensor:
    """What each token gets from its sample's queries, mean over them and the heads.

    ``queries`` are ``[sample, token]``; returns ``[sample, token]``.
    """
    weights = plain(**inputs, output_attentions=True, use_cache=False).attentions[layer]
    rows = []
    for sample, mine in enumerate(queries):
        rows.append(weights[sample][:, mine].mean((0, 1)))
    return torch.stack(rows)


@torch.no_grad()
def entering_states(plain: Any, inputs: Mapping[str, Tensor], layer: int) -> Tensor:
    """The stream entering a layer, not the one behind the last, ``[sample, token, d]``."""
    states: Tensor = plain(**inputs, output_hidden_states=True, use_cache=False).hidden_states[
        layer
    ]
    return states


def picked(scores: Tensor, within: Tensor, amount: int | float, *, highest: bool) -> Tensor:
    """The best tokens of each sample, by sorting; a share is rounded, halves up."""
    found = torch.zeros_like(within)
    for sample, mine in enumerate(within):
        places = mine.nonzero()[:, 0].tolist()
        count = amount if isinstance(amount, int) else int(2 * amount * len(places) + 1) // 2
        ranked = sorted(places, key=lambda p: float(scores[sample, p]), reverse=highest)
        for place in ranked[:count]:
            found[sample, place] = True
    return found
