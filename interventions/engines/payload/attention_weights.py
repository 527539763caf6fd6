"""Zeroing attention weights behind the softmax inside a trace, where no mask can express it.

Weights that a module returns are a by-product, and writing them alone changes nothing. So the
call of the attention function is caught with its queries, keys and values, what it must have
computed is computed again, and only if that is what it returned are the edited rows replaced. Where
several steps edit one call, each leaves its weights to the next, which goes on from there.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .attention_masks import blocked_pairs, is_readable


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Weights ``[sample, head, query, key]`` from rotated queries and keys."""
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) * scale
    if options.get("softcap") is not None:
        scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
    hidden = torch.finfo(scores.dtype).min
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, hidden)
    else:
        scores = (scores + mask.to(wide)).clamp_min(hidden)
    weights: torch.Tensor = scores.softmax(-1)
    return weights


def own_mask(mask: Any, step: dict[str, Any], query: torch.Tensor, keys: int) -> torch.Tensor:
    """The mask in force for a call of the attention function."""
    if mask is not None:
        covered: torch.Tensor = mask[..., :keys]
        return covered
    queries = query.shape[-2]
    readable = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device)
    return readable.tril(keys - queries) if step["causal"] and queries > 1 else readable


def collapsed(
    weights: torch.Tensor, moved: torch.Tensor, step: dict[str, Any], total: int
) -> torch.Tensor:
    """The weights with what was taken from the step's keys given to the first of them."""
    first = step["keys"].to(weights.device).int().argmax(1) - max(0, total - weights.shape[-1])
    first = first.repeat_interleave(step.get("copies", 1), 0)
    mass = moved.sum(-1)
    lost = (first < 0)[:, None, None] & (mass > 0)
    if lost.any():
        raise ValueError(
            f"REFUSED: {step['by']}: layer {step['layer']} looks back over a window that the first "
            "of the keys has left, so nothing can be given to it there"
        )
    place = first.clamp_min(0)[:, None, None, None].expand(*mass.shape, 1)
    return weights.scatter_add(-1, place, mass[..., None])


def zero_weights(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Take the step's keys out of its queries' attention without scaling up what is left."""
    call = getattr(model.get(step["path"]).source, step["call"])
    args, options = call.inputs
    query, key, value, *rest = args[1:]
    output = call.output
    mixed = output[0] if isinstance(output, tuple) else output
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    given = rest[0] if rest else options.get("attention_mask")
    mask = own_mask(given, step, query, key.shape[-2])
    total = step["queries"].shape[1] + step["behind"] + decoded
    pairs = blocked_pairs(step, mask, total) & is_readable(mask)
    if mixed.shape[1] != query.shape[2]:
        refuse(step)
    # Only the queries that lose something, in any sample, are computed again; and all where
    # weights are handed on, since another step may mean other queries.
    losing = pairs[:, 0].any(-1).any(0) | step["takes"] | step["leaves"]
    at = losing.nonzero()[:, 0]
    query, pairs, before = query[:, :, at], pairs[:, :, at], mixed[:, at]
    mask = mask[:, :, at] if mask.shape[2] > 1 else mask
    # One place for all layers, so that no more than one layer's weights are kept.
    slot = f"weights {step['when']}"
    weights = store[slot] if step["takes"] else attention_weights(query, key, mask, options)
    kept = weights.masked_fill(pairs, 0.0)
    changed = collapsed(kept, weights - kept, step, total) if step["collapse"] else kept
    again, made = (
        (w @ value.to(w.dtype)).transpose(1, 2).to(mixed.dtype) for w in (weights, changed)
    )
    rows = pairs[:, 0].any(-1)[..., None, None]
    # Rounding of the type, ten thousandths for float32.
    near = max(1e-4, 4 * torch.finfo(mixed.dtype).eps) * mixed.abs().max()
    if before.shape != made.shape or (((again - before) * rows).abs() > near).any():
        refuse(step)
    if step["leaves"]:
        store[slot] = changed
    edited = mixed.clone()
    edited[:, at] = torch.where(rows, made, before)
    if isinstance(output, tuple):
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
    weights[:, :, at] = torch.where(rows[:, None, :, :, 0], changed.to(weights), weights[:, :, at])
    return weights


def refuse(step: dict[str, Any]) -> None:
    """End the run: what the attention function does is not understood."""
    raise ValueError(
        f"REFUSED: {step['by']}: the attention of layer {step['layer']} could not be computed "
        "again, because it is no plain softmax of scores: use renormalise=True"
    )
