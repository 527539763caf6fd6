"""Steps that were made once for a plan on a batch, for as long as nothing they rest on changes.

A plan that runs over and over on one batch, as in a search or a training loop, would be compiled
each time. Kept is only what follows from the plan, the batch, the anatomy and the kind of pass: an
operation says so of itself (``rests_on_anatomy``). What looks at the weights, at the settings in
force or at another pass is compiled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from numpy.typing import NDArray

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
    # Tensors can be written in place, which their version tells; of arrays nothing does.
    inputs = [(id(tensor), tensor._version) for tensor in batch.inputs.values()]
    now = inputs, [mask.tobytes() for mask in _masks(batch)]
    found = held.get(what)
    if found is not None and found[0] is anatomy and found[1] == now:
        return found[2]
    if len(held) >= _MOST:
        held.clear()
    steps = make()
    held[what] = anatomy, now, steps
    return steps


def _masks(batch: Batch) -> Iterator[NDArray[Any]]:
    """What a batch was told about its tokens."""
    for tokens in batch.token_sets.values():
        yield from tokens.by_layer.values()
        if tokens.everywhere is not None:
            yield tokens.everywhere
    for classes in (batch.classes, *batch.layer_classes.values()):
        if classes is not None:
            yield from classes.membership.values()
            if classes.nearest is not None:
                yield classes.nearest.ids
