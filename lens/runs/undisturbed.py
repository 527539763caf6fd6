"""A model in evaluation mode for a while, and afterwards as it was.

A forward pass has side effects: several models of transformers keep the position offset of the last
prompt on themselves and reuse it in the next call, dynamic rotary embeddings keep the longest
length they have met, and dropout is alive in a model that somebody is training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from operator import is_, itemgetter
from typing import Any

import torch
from torch import nn

from ..errors import REFUSED, InputError
from ..opening.entries import only_entries
from ..opening.present_state import modules_of
from ..torch_settings import OfProcess, default_torch
from .one_at_a_time import alone

# nnsight's own slot; `.source` inside a trace rewrites it, and that has to last.
_KEPT = frozenset({"forward", "training"})
# What models carry over from one prompt to the next; a pass of ours depends on its inputs alone.
_CARRIED = frozenset({"rope_deltas"})
# What nnsight writes on a module in order to send a reference to it.
_TAG = "_persistent_id"


@contextmanager
def undisturbed(model: nn.Module, entered: Collection[nn.Module] | None = None) -> Iterator[None]:
    """Evaluation mode inside, :func:`alone`; afterwards the modules are as they were.

    Put back are every module's own training flag, its public plain attributes and its table of
    buffers. Attributes whose names begin with an underscore are bookkeeping that goes with hooks
    and parameters, and stay.

    Args:
        model: The transformers model, or a module of it.
        entered: Modules that nnsight is to reach inside; all of them when None.
    """
    modules = modules_of(model)
    try:
        with (
            alone(model),
            default_torch(),
            _eagerly(),
            _put_back(modules),
            nullcontext() if entered is None else only_entries(modules, entered),
        ):
            yield
    except ValueError as error:
        # Shipped code knows no class of ours.
        if str(error).startswith(REFUSED):
            raise InputError(str(error).removeprefix(REFUSED)) from None
        raise


def _force_eager() -> Callable[[], object]:
    stance: Any = torch.compiler.set_stance("force_eager")
    stance.__enter__()
    return partial(stance.__exit__, None, None, None)


_EAGER = OfProcess(_force_eager)


def _eagerly() -> AbstractContextManager[Any]:
    """What was compiled runs as it was written: compiled code has no places to look into."""
    return _EAGER.changed() if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _put_back(modules: Sequence[nn.Module]) -> Iterator[None]:
    held = [*map(vars, modules)]
    before = [*map(dict.copy, held)]
    tables = [*map(itemgetter("_buffers"), held)]
    buffers = [table and table.copy() for table in tables]
    # What is compiled keeps its flag on what it was compiled from, which is among the modules.
    for module, now in zip(modules, held, strict=True):
        if now.get("training", False):
            module.training = False
    for name in _CARRIED:
        for module, now in zip(modules, held, strict=True):
            if name in now:
                setattr(module, name, None)
    try:
        yield
    finally:
        # Most is as it was, which takes no more than a look.
        if not _equal(held, before):
            for module, now, kept in zip(modules, held, before, strict=True):
                training = kept.get("training", False)
                if now.get("training", False) is not training:
                    module.training = training
                if not _equal(now, kept):
                    _restore(now, {name: one for name, one in kept.items() if _is_state(name)})
        for table, earlier in zip(tables, buffers, strict=True):
            if (table or earlier) and not (
                table.keys() == earlier.keys() and all(map(is_, table.values(), earlier.values()))
            ):
                table.clear()
                table.update(earlier)


def _equal(now: Any, before: Any) -> bool:
    """Whether attributes are the same objects, or equal ones."""
    try:
        return bool(now == before)
    # Of two tensors it cannot be said in one word.
    except Exception:
        return False


def _restore(held: dict[str, Any], state: dict[str, Any]) -> None:
    for name in [name for name in held if _is_state(name) and name not in state]:
        del held[name]
    held.update(state)


def _is_state(name: str) -> bool:
    return name == _TAG or not (name.startswith("_") or name in _KEPT)
