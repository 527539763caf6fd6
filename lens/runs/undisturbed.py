"""A model in evaluation mode for a while, and afterwards as it was.

A forward pass has side effects: several models of transformers keep the position offset of the last
prompt on themselves and reuse it in the next call, dynamic rotary embeddings keep the longest
length they have met, and dropout is alive in a model that somebody is training.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from operator import is_, itemgetter
from typing import Any

import torch
from torch import nn

from ..errors import REFUSED, InputError
from ..opening.present_state import modules_of
from ..torch_settings import default_torch
from .one_at_a_time import alone

# nnsight's own slot; `.source` inside a trace rewrites it, and that has to last.
_KEPT = frozenset({"forward", "training"})
# What models carry over from one prompt to the next; a pass of ours depends on its inputs alone.
_CARRIED = frozenset({"rope_deltas"})
# What nnsight writes on a module in order to send a reference to it.
_TAG = "_persistent_id"


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, :func:`alone`; afterwards the modules are as they were.

    Put back are every module's own training flag, its public plain attributes and its table of
    buffers. Attributes whose names begin with an underscore are bookkeeping that goes with hooks
    and parameters, and stay.
    """
    try:
        with alone(model), default_torch(), _eagerly(), _put_back(model):
            yield
    except ValueError as error:
        # Shipped code knows no class of ours.
        if str(error).startswith(REFUSED):
            raise InputError(str(error).removeprefix(REFUSED)) from None
        raise


def _eagerly() -> AbstractContextManager[Any]:
    """What was compiled runs as it was written: compiled code has no places to look into."""
    compiled = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    before = []
    for module in modules_of(model):
        held, buffers = vars(module), module._buffers
        # What is compiled keeps its flag on what it was compiled from, which is among the modules.
        names, training = tuple(held), held.get("training", False)
        before.append((module, names, training, _state(names)(held), buffers and buffers.copy()))
        if training:
            module.training = False
        for name in _CARRIED:
            if name in held:
                setattr(module, name, None)
    try:
        yield
    finally:
        for module, names, training, state, buffers in before:
            held, now = vars(module), module._buffers
            if held.get("training", False) is not training:
                module.training = training
            # Most is as it was, which takes no more than a look at what counts.
            if tuple(held) != names or not all(map(is_, _state(names)(held), state)):
                _restore(held, dict(zip(filter(_is_state, names), state, strict=True)))
            if (now or buffers) and not (
                now.keys() == buffers.keys() and all(map(is_, now.values(), buffers.values()))
            ):
                now.clear()
                now.update(buffers)


@lru_cache(maxsize=4096)
def _state(names: tuple[str, ...]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """What reads, of a module that holds attributes of these names, those that are put back."""
    mine = [*filter(_is_state, names)]
    return itemgetter(*mine) if len(mine) > 1 else lambda held: tuple(held[name] for name in mine)


def _restore(held: dict[str, Any], state: dict[str, Any]) -> None:
    for name in [name for name in held if _is_state(name) and name not in state]:
        del held[name]
    held.update(state)


def _is_state(name: str) -> bool:
    return name == _TAG or not (name.startswith("_") or name in _KEPT)
