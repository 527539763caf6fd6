"""What passes over one batch may share, as far as it was seen to be right on this very model.

The hazard: what is shared must really be the same. A decoder may take an argument that no rule here
repeats, layers may hand each other more than the residual stream, a module may not be a function of
its input. So nothing is taken on trust: what a model shares for the first time is compared with a
single run, and what does not give the same numbers is not shared again.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

# Passes themselves, one condition behind the other in the batch; what the layers below the first
# one touched return; what the modules in front of the decoder return.
ROWS, LAYERS, MODULES = "rows", "layers", "modules"
Way = frozenset[str]
# In the order in which they are tried.
WAYS: tuple[Way, ...] = (
    frozenset((ROWS, LAYERS, MODULES)),
    frozenset((ROWS, MODULES)),
    frozenset((LAYERS, MODULES)),
    frozenset((MODULES,)),
    frozenset(),
)
# What two computations of the same thing may differ by, relative to the largest number in it.
EXACT, ROUNDED = 1e-4, 5e-2
# Some models give words that are never said the lowest number there is.
NEVER_SAID = 1e30


@dataclass
class Seen:
    """What was seen of one model, by kind of batch.

    Attributes:
        right: Ways in which the numbers of a single run came out.
        wrong: How many of :data:`WAYS` did not lead there.
    """

    right: dict[Hashable, set[Way]] = field(default_factory=dict)
    wrong: dict[Hashable, int] = field(default_factory=dict)

    def allowed(self, kind: Hashable) -> Way:
        """The most that batches of a kind may share."""
        return WAYS[self.wrong.get(kind, 0)]

    def is_right(self, kind: Hashable, way: Way) -> bool:
        """Whether a way, or one that shares more, was seen to be right."""
        return not way or any(way <= known for known in self.right.get(kind, ()))

    def note(self, kind: Hashable, way: Way, *, right: bool) -> None:
        """Remember how a comparison came out."""
        if right:
            self.right.setdefault(kind, set()).add(way)
        else:
            # Those that share the same things here would fail in the same way.
            number = self.wrong.get(kind, 0)
            rest = range(number + 1, len(WAYS))
            self.wrong[kind] = next(i for i in rest if not way <= WAYS[i])


_SEEN: WeakKeyDictionary[Any, Seen] = WeakKeyDictionary()


def seen_of(model: Any) -> Seen:
    """What was seen of a transformers model so far."""
    return _SEEN.setdefault(model, Seen())


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
