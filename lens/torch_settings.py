"""What torch is set to by default, while something of ours is computed.

A caller's default device and type reach every tensor that is made without saying which, in
processors and models too (on ``meta`` there would be no numbers). Autocast would make float32
readouts bfloat16 ones, and what inference mode makes can never have a gradient. So none of them
counts inside, and all are as they were afterwards.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


class OfProcess:
    """A setting that all threads share: not put back while another thread is inside.

    ``change`` changes it and returns what puts it back, or None where there is nothing to change.
    """

    def __init__(self, change: Callable[[], Callable[[], object] | None]) -> None:
        self._change = change
        self._lock = threading.RLock()  # what is collected inside may leave too
        self._inside: Counter[int] = Counter()  # by thread, how often
        self._left: list[tuple[int, Callable[[], object]]] = []  # to put back, by their numbers
        self._number = 0

    @contextmanager
    def changed(self) -> Iterator[None]:
        """The setting changed inside."""
        me = threading.get_ident()
        with self._lock:
            self._number += 1
            number, back = self._number, self._change()
            self._inside[me] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[me] -= 1
                self._inside = +self._inside
                if back is not None:
                    self._left.append((number, back))
                if not self._inside.keys() - {me}:
                    self._put_back(0 if not self._inside else number)

    def _put_back(self, first: int) -> None:
        """From the last change to the first, down to a number."""
        for one in sorted(self._left, key=lambda left: -left[0]):
            if one[0] >= first:
                one[1]()
                self._left.remove(one)


def _float32() -> Callable[[], object] | None:
    dtype = torch.get_default_dtype()
    if dtype == torch.float32:
        return None
    torch.set_default_dtype(torch.float32)
    return partial(torch.set_default_dtype, dtype)


_FLOAT32 = OfProcess(_float32)


@contextmanager
def default_torch() -> Iterator[None]:
    """Default device CPU and type float32, no autocast and no inference mode; grad mode stays.

    What has a device or a type of its own, as a model and its inputs, keeps them. Also a decorator:
    ``@default_torch()``.
    """
    grad = torch.is_grad_enabled()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.set_grad_enabled(grad))
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_FLOAT32.changed())
        yield
