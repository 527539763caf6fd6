"""Torch hooks on an unwrapped model that recomputes the whole sequence at every step.

The oracle of all modes of generation: without a cache a token's column is its position, whatever
the mode, so nothing has to be told apart by the kind of pass. Rows are repeated as beams and
returned sequences repeat them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from oracles.overwriting import seed_of
from oracles.torch_hooks import attached, entering, leaving


@dataclass(frozen=True)
class Prompts:
    """Which tokens are meant.

    Attributes:
        chosen: Of the prompts, ``[sample, token]``.
        written: Whether what is written behind them is meant too.
        only_written: Whether nothing else is.
    """

    chosen: Tensor
    written: bool = False
    only_written: bool = False

    def over(self, states: Tensor) -> Tensor:
        """The tokens meant in states ``[row, token, d]``, ``[row, token]``."""
        samples, length = self.chosen.shape
        rows, width = states.shape[:2]
        assert width >= length, "a pass over less than the prompt"
        made = torch.zeros(rows, width, dtype=torch.bool)
        if not self.only_written:
            made[:, :length] = self.chosen.repeat_interleave(rows // samples, 0)
        made[:, length:] = self.written
        return made


Edit = tuple[Any, Callable[..., Any], bool]


def changing(module: Any, made: Callable[[Tensor], Tensor], *, output: bool = False) -> Edit:
    """An edit of what enters a module, or of what it returns."""
    return module, made, output


def zero(at: Prompts) -> Callable[[Tensor], Tensor]:
    return lambda states: states.masked_fill(at.over(states)[..., None], 0.0)


def times(at: Prompts, factor: float) -> Callable[[Tensor], Tensor]:
    return lambda states: torch.where(at.over(states)[..., None], states * factor, states)


def mean(at: Prompts, sources: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean over sources of all prompts, taken once for every beam."""

    def made(states: Tensor) -> Tensor:
        copies = len(states) // len(sources)
        changed = states.clone()
        for copy in range(copies):
            own = states[copy::copies][:, : sources.shape[1]]
            changed[copy::copies] = own[sources].double().mean(0).to(states)
        return torch.where(at.over(states)[..., None], changed, states)

    return made


def noise(at: Prompts, seed: int, contents: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def made(states: Tensor) -> Tensor:
        samples, length = at.chosen.shape
        where, changed = at.over(states), states.clone()
        for row in range(len(states)):
            sample = row // (len(states) // samples)
            spans = [(0, where[row, :length].nonzero()[:, 0])]
            later = range(length, states.shape[1]) if at.written else ()
            spans += [(column - length + 1, torch.tensor([column])) for column in later]
            for step, columns in spans:
                generator = torch.Generator().manual_seed(seed_of(seed, contents[sample], step))
                drawn = torch.randn((len(columns), states.shape[-1]), generator=generator)
                norms = states[row, columns].norm(dim=-1, keepdim=True)
                changed[row, columns] = drawn / drawn.norm(dim=-1, keepdim=True) * norms
        return changed

    return made


def patched(decoder: Any, source: int, target: int, at: Prompts) -> list[Edit]:
    seen: list[Tensor] = []

    def keep(states: Tensor) -> Tensor:
        seen[:] = [states]
        return states

    def put(states: Tensor) -> Tensor:
        return torch.where(at.over(states)[..., None], seen[0], states)

    layers = decoder.layers
    return [changing(layers[source], keep), changing(layers[target], put)]


@contextmanager
def edited(edits: Sequence[Edit]) -> Iterator[None]:
    """The edits in force, in order, while inside."""
    handles = [
        module.register_forward_hook(leaving(made))
        if output
        else module.register_forward_pre_hook(entering(made), with_kwargs=True)
        for module, made, output in edits
    ]
    with attached(handles):
        yield


@contextmanager
def unseen(
    mixers: Sequence[Any], queries: Prompts, keys: Tensor, *, renormalise: bool = True
) -> Iterator[None]:
    """Attention weights of queries on keys of the prompt zeroed behind the softmax; eager only."""
    running, original = [0], torch.nn.functional.softmax

    def softmax(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = original(scores, *args, **kwargs)
        if not running[0] or scores.ndim != 4:
            return weights
        rows, _, width, _ = weights.shape
        length = keys.shape[1]
        blocked = torch.zeros(rows, width, width, dtype=torch.bool)
        hidden = keys.repeat_interleave(rows // len(keys), 0)[:, None]
        blocked[:, :, :length] = queries.over(torch.empty(rows, width, 0))[..., None] & hidden
        blocked &= ~torch.eye(width, dtype=torch.bool)
        kept = weights.masked_fill(blocked[:, None], 0.0)
        return kept / kept.sum(-1, keepdim=True) if renormalise else kept

    def enter(*_: Any) -> None:
        running[0] += 1

    def leave(*_: Any) -> None:
        running[0] -= 1

    handles = [m.register_forward_pre_hook(enter) for m in mixers]
    handles += [m.register_forward_hook(leave) for m in mixers]
    with attached(handles), mock.patch.object(torch.nn.functional, "softmax", softmax):
        yield
