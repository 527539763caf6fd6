"""One pass at a time on a model: two at once would read and change each other's states.

nnsight keeps on the model what a pass is to read and change. A second thread, or a pass that is
started inside an open trace, met raw errors of greenlets there, or another pass's states.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import InputError

_THREADS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_CHANGING = threading.Lock()


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Nobody but this thread runs the model inside.

    Raises:
        InputError: Another thread runs it; waiting could be for ever.
    """
    me = threading.get_ident()
    with _CHANGING:
        owner = _THREADS.get(model)
        if owner is None:
            _THREADS[model] = me
    if owner not in (None, me):
        raise InputError(
            f"{type(model).__name__} is running in another thread, and a model runs once at a "
            "time: wait for that, or give each thread a copy.deepcopy of the VisualLM"
        )
    try:
        yield
    finally:
        if owner is None:
            del _THREADS[model]


def refuse_inside_a_trace(host: Any, model: nn.Module) -> None:
    """Refuse to start a pass while a block of nnsight runs on the same model.

    Args:
        host: The nnsight model, or a copy of it.
        model: The transformers model inside.

    Raises:
        InputError: One does.
    """
    with alone(model):
        if host.interleaver.interleaving:
            raise InputError(
                "a pass was started while a trace of the same model is open: end the `with` block "
                "first, or read in it what you need"
            )
