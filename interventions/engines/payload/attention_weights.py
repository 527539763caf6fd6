"""Changing attention weights behind the softmax inside a trace, where no mask can express it.

Weights that a module returns are a by-product, and writing them alone changes nothing. So the
call of the attention function is caught with its queries, keys and values, what it must have
computed is computed again, and only if that is what it returned are the edited rows replaced. Where
several steps edit one call, each leaves its weights to the next, which goes on from there.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from ....lens.runs.weights_in_force import attention_weights, mask_of_call, same_as_gathered
from .attention_masks import blocked_pairs, flags_over, is_readable


def zeroed(
    weights: torch.Tensor, pairs: torch.Tensor, step: dict[str, Any], total: int
) -> torch.Tensor:
    """The weights without those of the pairs, which the first of the keys may get."""
    kept = weights.masked_fill(pairs, 0.0)
    if not step["collapse"]:
        return kept
    mass = (weights - kept).sum(-1)
    first = step["keys"].to(weights.device).int().argmax(1) - max(0, total - weights.shape[-1])
    first = first.repeat_interleave(step.get("copies", 1), 0)
    lost = (first < 0)[:, None, None] & (mass > 0)
    if lost.any():
        raise ValueError(
            f"REFUSED: {step['by']}: layer {step['layer']} looks back over a window that the first "
            "of the keys has left, so nothing can be given to it there"
        )
    place = first.clamp_min(0)[:, None, None, None].expand(*mass.shape, 1)
    return kept.scatter_add(-1, place, mass[..., None])


def scaled_weights(
    weights: torch.Tensor, pairs: torch.Tensor, step: dict[str, Any], total: int
) -> torch.Tensor:
    """The weights of the pairs times a factor; what is freed goes where the step says, if it does.

    Those that get it share it in proportion to their own weights.
    """
    kept = torch.where(pairs, weights * step["factor"], weights)
    if "takers" not in step:
        return kept
    freed = (weights - kept).sum(-1, keepdim=True)
    takers = flags_over(step, "takers", weights, total)[:, None, None, :]
    shares = weights * (takers & ~pairs)
    sums = shares.sum(-1, keepdim=True)
    lost = ((freed > 0) & (sums <= 0))[..., 0]
    if lost.any():
        sample = int(lost.nonzero()[0, 0]) // step.get("copies", 1)
        raise ValueError(
            f"REFUSED: {step['by']}: in layer {step['layer']} a token of sample {sample} attends "
            "to none of the tokens that its weights are to be given to; leave it out of the "
            "queries, or name more tokens in give_to"
        )
    return kept + shares * (freed / sums.clamp_min(torch.finfo(sums.dtype).tiny))


def edit_weights(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Zero or scale the weights that the step's queries give to its keys, in its heads."""
    call = getattr(model.get(step["path"]).source, step["call"])
    args, options = call.inputs
    query, key, value, *rest = args[1:]
    output = call.output
    mixed = output[0] if isinstance(output, tuple) else output
    given = rest[0] if rest else options.get("attention_mask")
    mask = mask_of_call(given, query, key.shape[2], options, step["causal"])
    total = step["queries"].shape[1] + step["behind"] + decoded
    pairs = blocked_pairs(step, mask, total, query.shape[1]) & is_readable(mask)
    if mixed.shape[1] != query.shape[2]:
        refuse(step)
    # Only the queries that lose something, in any sample, are computed again; and all where
    # weights are handed on, since another step may mean other queries, or are read.
    losing = pairs.any(1).any(-1).any(0) | step["takes"] | step["leaves"] | step["shown"]
    at = losing.nonzero()[:, 0]
    pairs, before = pairs[:, :, at], mixed[:, at]
    mask = mask[:, :, at] if mask.shape[2] > 1 else mask
    # One place for all layers, so that no more than one layer's weights are kept.
    slot = f"weights {step['when']}"
    if step["takes"]:
        weights = store[slot]
    else:
        bias = options.get("position_bias")
        bias = None if bias is None else bias[..., at, : key.shape[2]]
        made = {**options, "position_bias": bias}
        weights = attention_weights(query[:, :, at], key, mask, made)
    edit = scaled_weights if "factor" in step else zeroed
    changed = edit(weights, pairs, step, total)
    value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
    gathered = (changed @ value.to(changed.dtype)).transpose(1, 2).to(mixed.dtype)
    rows = pairs.any(1).any(-1)
    if before.shape != gathered.shape:
        refuse(step)
    if not (same_as_gathered(weights, value, before) | ~rows).all():
        refuse(step)
    if step["leaves"]:
        store[slot] = changed
    edited = mixed.clone()
    edited[:, at] = torch.where(rows[..., None, None], gathered, before)
    if isinstance(output, tuple):
        first, *others = output[1:] or (None,)
        if first is None and step["shown"]:
            returned = [changed, *others]
        else:
            returned = [in_force(part, changed, at, rows) for part in output[1:]]
        call.output = (edited, *returned)
    else:
        call.output = edited


def in_force(returned: Any, changed: torch.Tensor, at: torch.Tensor, rows: torch.Tensor) -> Any:
    """Weights that the attention function returns beside what it gathered, the edit in them.

    Nothing is computed from them any more; but whoever reads them is to see what was in force.
    """
    if not isinstance(returned, torch.Tensor) or returned.ndim != changed.ndim:
        return returned
    weights = returned.clone()
    weights[:, :, at] = torch.where(rows[:, None, :, None], changed.to(weights), weights[:, :, at])
    return weights


def refuse(step: dict[str, Any]) -> None:
    """End the run: what the attention function does is not understood."""
    raise ValueError(
        f"REFUSED: {step['by']}: the attention of layer {step['layer']} could not be computed "
        "again, because it is no plain softmax of scores: only what BlockAttention does with "
        "renormalise=True, in the mask, works there"
    )
