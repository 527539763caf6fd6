"""Attention weights as eager attention makes them, on a copy that nobody wrapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from oracles.torch_hooks import attached


@contextmanager
def weights_of(mixers: Mapping[int, Any]) -> Iterator[dict[int, Tensor]]:
    """By layer the weights ``[sample, head, query, key]`` that token mixers return."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        return lambda _, __, output: kept.__setitem__(layer, output[1])

    handles = [mixer.register_forward_hook(keep(layer)) for layer, mixer in mixers.items()]
    with attached(handles), torch.no_grad():
        yield kept


@contextmanager
def softmax_changed(mixers: Mapping[Any, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """What the softmax of some mixers returns, ``[sample, head, query, key]``, is changed."""
    running: list[Any] = []
    calls: list[int] = []
    original = torch.nn.functional.softmax

    def softmax(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = original(scores, *args, **kwargs)
        if not running or scores.ndim != 4:
            return weights
        calls.append(1)
        return running[-1](weights)

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


def scaled(
    pairs: Tensor,
    factor: float,
    takers: Tensor | None = None,
    heads: list[int] | None = None,
    *,
    renormalise: bool = False,
) -> Callable[[Tensor], Tensor]:
    """Weights of pairs ``[sample, query, key]`` times a factor, row by row, written out by hand.

    What is freed goes to the takers ``[sample, key]`` by their shares, or to all that is left.
    """

    def change(weights: Tensor) -> Tensor:
        made = weights.clone()
        for sample, query in pairs.any(-1).nonzero().tolist():
            mine = pairs[sample, query]
            for head in range(weights.shape[1]) if heads is None else heads:
                row = made[sample, head, query]
                old = row[: len(mine)][mine]
                freed = (old * (1 - factor)).sum()
                row[: len(mine)][mine] = old * factor
                if takers is not None and freed > 0:
                    others = takers[sample]
                    row[: len(mine)][others] *= 1 + freed / row[: len(mine)][others].sum()
                if renormalise:
                    row /= row.sum()
        return made

    return change
