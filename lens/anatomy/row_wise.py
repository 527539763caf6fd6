"""Whether a module treats every token by itself, so that it can be run on some of them only.

Experts of limited capacity drop tokens because of others, convolutions and shifts mix neighbours,
and some modules take no sequence of another length. No name tells: it is tried on the module.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..opening.placement import device_of, dtype_of
from ..opening.present_state import is_hooked, modules_of, state_of
from ..tolerances import ROW_WISE
from ..torch_settings import default_torch

# Rows of the trial: a few of their own, and twice many alike, which crowd into the same experts.
OWN, ALIKE = 5, 21

_TRIED: WeakKeyDictionary[nn.Module, tuple[Hashable, bool]] = WeakKeyDictionary()


def is_row_wise(model: Any, module: nn.Module, width: int) -> bool:
    """Whether a module takes rows ``[1, row, width]`` and makes of each what it is without others.

    Tried once for as long as the module stays as it is, in evaluation mode. Modules with hooks of
    the owner's are not tried: who counts rows sees that some are not there.
    """
    if any(map(is_hooked, modules_of(module))):
        return False
    state = state_of(module)
    known = _TRIED.get(module)
    if known is None or known[0] != state:
        # What it leaves on itself another module may read, and would find some rows only.
        alone = _tried(model, module, width) and state_of(module) == state
        known = _TRIED[module] = state, alone
    return known[1]


@default_torch()
@torch.no_grad()
def _tried(model: Any, module: nn.Module, width: int) -> bool:
    if len(inspect.signature(type(module).forward).parameters) != 2:  # itself and the rows
        return False
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(OWN, width, generator=generator)
    one = torch.randn(1, width, generator=generator)
    rows = torch.cat([own, one.expand(ALIKE, -1), -one.expand(ALIKE, -1)])
    rows = rows[torch.randperm(len(rows), generator=generator)]
    rows = rows.to(device_of(module), dtype_of(model, module))
    kept = torch.arange(len(rows), device=rows.device) % 3 == 1
    flags = [(part, part.training) for part in modules_of(module)]
    for part, _ in flags:
        part.training = False
    try:
        whole, some, none = (_made(module, x) for x in (rows, rows[kept], rows[:0]))
    # Whatever a module raises that takes no such rows.
    except Exception:
        return False
    finally:
        for part, training in flags:
            part.training = training
    if whole is None or some is None or none is None or len(none):
        return False
    apart, size = (whole[kept] - some).abs().max(), whole.abs().max()
    return bool(apart <= ROW_WISE.of(whole.dtype) * size)


def _made(module: nn.Module, rows: Tensor) -> Tensor | None:
    """What a module makes of rows, a row for each; None if it returns something else."""
    output = module(rows.unsqueeze(0))
    made = output[0] if isinstance(output, tuple) else output
    if not isinstance(made, Tensor) or made.shape[:-1].numel() != len(rows):
        return None
    return made.reshape(-1, made.shape[-1])
