"""What passes over one batch may share, as far as it was proven on this very model.

What is shared must really be the same. A decoder may take an argument that no rule here repeats,
layers may hand each other more than the residual stream, a module may not be a function of its
input. So nothing is taken on trust: what a model shares for the first time is compared with a
single pass, and what does not give the same numbers is not shared again.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

# One pass for several conditions, stacked along the batch; what the layers below the first one
# touched return; what the towers and all else in front of the decoder return.
STACK, LAYERS, TOWERS = "stack", "layers", "towers"
Shared = frozenset[str]
# In the order in which they are tried.
ATTEMPTS: tuple[Shared, ...] = (
    frozenset((STACK, LAYERS, TOWERS)),
    frozenset((STACK, TOWERS)),
    frozenset((LAYERS, TOWERS)),
    frozenset((TOWERS,)),
    frozenset(),
)
# What two computations of the same thing may differ by, relative to the largest number in it.
EXACT, ROUNDED = 1e-4, 5e-2
# Some models give words that are never said the lowest number there is.
NEVER_SAID = 1e30


@dataclass
class Proven:
    """What comparisons on one model showed, by kind of batch.

    Attributes:
        equal: What was shared when the numbers of a single pass came out.
        failed: How many of :data:`ATTEMPTS` did not lead there.
    """

    equal: dict[Hashable, set[Shared]] = field(default_factory=dict)
    failed: dict[Hashable, int] = field(default_factory=dict)

    def allowed(self, kind: Hashable) -> Shared:
        """The most that batches of a kind may share."""
        return ATTEMPTS[self.failed.get(kind, 0)]

    def is_proven(self, kind: Hashable, shared: Shared) -> bool:
        """Whether sharing this, or more, gave the numbers of a single pass."""
        return not shared or any(shared <= known for known in self.equal.get(kind, ()))

    def record(self, kind: Hashable, shared: Shared, *, equal: bool) -> None:
        """Remember how a comparison came out."""
        if equal:
            self.equal.setdefault(kind, set()).add(shared)
        else:
            # Attempts that share the same things here would fail in the same way.
            number = self.failed.get(kind, 0)
            rest = range(number + 1, len(ATTEMPTS))
            self.failed[kind] = next(i for i in rest if not shared <= ATTEMPTS[i])


_PROVEN: WeakKeyDictionary[Any, Proven] = WeakKeyDictionary()


def proven_of(model: Any) -> Proven:
    """What was proven on a transformers model so far."""
    return _PROVEN.setdefault(model, Proven())


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
