"""Steps that were made once for a plan on a batch, for as long as nothing they rest on changes.

A plan that runs over and over on one batch, as in a search or a training loop, would be compiled
each time. Kept is only what follows from the plan, the batch, the anatomy and the kind of pass: an
operation says so of itself (``rests_on_anatomy``). What looks at the weights, at the settings in
force or at another pass is compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

from ...lens.anatomy import Anatomy
from ...lens.inputs.batch import Batch
from .steps import Step

_MOST = 64  # plans per batch

# The steps name no batch, so that a batch that nobody holds any more is let go.
_KEPT: WeakKeyDictionary[Batch, dict[Hashable, tuple[Anatomy, Any, tuple[Step, ...]]]] = (
    WeakKeyDictionary()
)


def kept_steps(
    batch: Batch, anatomy: Anatomy, what: Hashable, make: Callable[[], tuple[Step, ...]]
) -> tuple[Step, ...]:
    """What ``make`` returns, made once for a batch, an anatomy and a plan with its kind of pass."""
    held = _KEPT.setdefault(batch, {})
    # Tensors can be written in place, which their version tells.
    inputs = tuple((id(tensor), tensor._version) for tensor in batch.inputs.values())
    found = held.get(what)
    if found is not None and found[0] is anatomy and found[1] == inputs:
        return found[2]
    if len(held) >= _MOST:
        held.clear()
    steps = make()
    held[what] = anatomy, inputs, steps
    return steps
