"""What comparisons showed about one model, for as long as it is in the state they were made in.

What is shared must really be the same. A decoder may take an argument that no rule here repeats,
layers may hand each other more than the residual stream, a module may not be a function of its
input. So nothing is taken on trust: what a model does for the first time is compared with a single
pass. A comparison speaks for what it covered only, which is its key; and for the model as it was: a
registered hook, a toggled adapter or a training step begins a new record.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..opening.present_state import state_of

# What two computations of the same thing may differ by, relative to the largest number in it.
EXACT, ROUNDED = 1e-4, 5e-2
# Some models give words that are never said the lowest number there is.
NEVER_SAID = 1e30


@dataclass
class Proven:
    """What comparisons on one model in one state showed.

    Attributes:
        state: The state.
        right: Whether the numbers of a single pass came out, by what the comparison covered.
        asked: How many conditions there were so far, by kind.
    """

    state: Hashable
    right: dict[Hashable, bool] = field(default_factory=dict)
    asked: dict[Hashable, int] = field(default_factory=dict)


_PROVEN: WeakKeyDictionary[Any, Proven] = WeakKeyDictionary()


def proven_of(model: Any) -> Proven:
    """What was proven on a transformers model since it last changed."""
    state = state_of(model)
    if model not in _PROVEN or _PROVEN[model].state != state:
        _PROVEN[model] = Proven(state)
    return _PROVEN[model]


def is_same(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same but for rounding of their type."""
    if found.shape != expected.shape:
        return False
    real = expected.isfinite() & (expected.abs() < NEVER_SAID)
    if not bool(real.any()):
        return True
    exact = expected.dtype in (torch.float32, torch.float64)
    gap = (found[real].double() - expected[real].double()).abs().max()
    size = expected[real].double().abs().max().clamp_min(1e-30)
    return bool(gap <= (EXACT if exact else ROUNDED) * size)
