"""Zeroing what a module returns at some tokens by not computing it there.

Carried out inside a trace, as everything of this folder (see `carry_out`). It takes a module that
treats every token by itself, which is tried before on the module.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .carry_out import index_of, zero


def leave_out(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Let a module compute the other tokens only, and return zero at the step's."""
    if step.get("parts", 1) > 1:
        # Each beam, and each of several later tokens, comes by itself; rows are gathered once.
        zero(model, store, step, decoded)
        return
    site = model.get(step["path"])
    args, given = site.inputs
    if len(args) != 1 or given or not isinstance(args[0], torch.Tensor):
        zero(model, store, step, decoded)
        return
    states: torch.Tensor = args[0]
    # Some modules take one row per token, whatever the sample: [sample * token, d].
    rows = states.reshape(step["samples"], -1, states.shape[-1])
    others = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    others[index_of(step, rows)] = False
    left = rows[others]
    site.inputs = ((left if states.ndim == 2 else left.unsqueeze(0),), given)
    output = site.output
    made = output[0] if isinstance(output, tuple) else output
    others = others.to(made.device)
    whole = made.new_zeros(*others.shape, made.shape[-1])
    whole[others] = made.reshape(-1, made.shape[-1])
    whole = whole.reshape(*states.shape[:-1], -1)
    site.output = (whole, *output[1:]) if isinstance(output, tuple) else whole
