"""Zeroing what a module returns at some tokens by not computing it there.

Carried out inside a trace, as everything of this folder (see `carry_out`). It takes a module that
treats every token by itself, which is tried before on the module.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .carry_out import index_of, zero


def ffn_without_rows(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Let a module compute the other tokens only, and return zero at the step's."""
    if step.get("parts", 1) > 1:
        # Each beam, and each of several later tokens, comes by itself; rows are gathered once.
        zero(model, store, step, decoded)
        return
    site = model.get(step["path"])
    args, given = site.inputs
    others = others_of(args, given, step)
    if others is None:
        zero(model, store, step, decoded)
        return
    compute_only(site, others)


def compute_only(site: Any, others: torch.Tensor) -> None:
    """Let a module of the trace compute these tokens' rows, and return zero for the rest."""
    (states,), given = site.inputs
    site.inputs = ((only(states, others),), given)
    site.output = among(site.output, states, others)


def others_of(args: Any, given: Any, step: dict[str, Any]) -> Any:
    """Tokens that are not the step's, ``[sample, token]``; None if a module takes other things."""
    if len(args) != 1 or given or not isinstance(args[0], torch.Tensor):
        return None
    # Some modules take one row per token, whatever the sample: [sample * token, d].
    rows = args[0].reshape(step["samples"], -1, args[0].shape[-1])
    others = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    others[index_of(step, rows)] = False
    return others


def only(states: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The other tokens' states, as one sequence."""
    left = states.reshape(*others.shape, -1)[others]
    return left if states.ndim == 2 else left.unsqueeze(0)


def among(output: Any, states: torch.Tensor, others: torch.Tensor) -> Any:
    """What a module returned for the other tokens, with zero at the step's."""
    made = output[0] if isinstance(output, tuple) else output
    others = others.to(made.device)
    whole = made.new_zeros(*others.shape, made.shape[-1])
    whole[others] = made.reshape(-1, made.shape[-1])
    whole = whole.reshape(*states.shape[:-1], -1)
    return (whole, *output[1:]) if isinstance(output, tuple) else whole
