"""Tokens that come in late, by hooks: whole layers do nothing to them, and nobody sees them there.

What the model adds to their states between two layers is left to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from oracles.knockouts import knocked_out, mixers_of
from oracles.torch_hooks import attached, entered, entering


@contextmanager
def entering_late(
    layers: Sequence[Any], late: Tensor, layer: int, norm: str = "raw"
) -> Iterator[None]:
    """Tokens ``late`` ``[1, token]`` of an eager copy's only sample enter at a layer.

    Args:
        layers: The decoder's layers.
        late: Which tokens.
        layer: Where they come in.
        norm: Scale of their states there: ``raw``, ``rescaled`` or ``matched``.
    """

    def skipped(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        states, before = output[0] if isinstance(output, tuple) else output, entered(args, kwargs)
        kept = torch.where(late[..., None], before, states)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    def scaled(states: Tensor) -> Tensor:
        wanted = states[~late].norm(dim=-1).median()
        own = states[late].norm(dim=-1, keepdim=True)
        factor = wanted / (own.median() if norm == "rescaled" else own)
        changed = states.clone()
        changed[late] = states[late] * factor
        return changed

    handles = [x.register_forward_hook(skipped, with_kwargs=True) for x in layers[:layer]]
    if norm != "raw":
        handles.append(layers[layer].register_forward_pre_hook(entering(scaled), with_kwargs=True))
    pairs = ~late[:, :, None] & late[:, None]
    hidden = dict.fromkeys(mixers_of(None, layers[:layer]), pairs)
    with attached(handles), knocked_out(hidden), torch.no_grad():
        yield
