"""What torch is set to by default, while something of ours is computed.

A caller's default device and type reach every tensor that is made without saying which, in
processors and models too (on ``meta`` there would be no numbers). Autocast would make float32
readouts bfloat16 ones, and what inference mode makes can never have a gradient. So none of them
counts inside, and all are as they were afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def default_torch() -> Iterator[None]:
    """Default device CPU and type float32, no autocast and no inference mode; grad mode stays.

    What has a device or a type of its own, as a model and its inputs, keeps them. Also a decorator:
    ``@default_torch()``.
    """
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.set_grad_enabled(grad))
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
