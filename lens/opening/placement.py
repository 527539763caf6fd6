"""Where a module computes: weights that are offloaded are kept elsewhere than they are used."""

from __future__ import annotations

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module that has weights computes."""
    # Weights that are offloaded live on "meta"; accelerate's hook knows where they are brought.
    where = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if where is None else torch.device(where)
