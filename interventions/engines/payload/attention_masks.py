"""Blocking attention inside a trace: editing the mask that one layer's token mixer receives.

Under sdpa a mixer often receives no mask at all, which does not mean that every key may
be read: the causal mask is then the kernel's. Under eager a mask is added to the scores, so a
boolean one would be added as 1. And a query without any key left attends to everything, the future
included, on one backend, and to nothing on the other.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch


def flags_of(step: dict[str, Any], which: str, total: int, like: torch.Tensor) -> torch.Tensor:
    """Which of all tokens so far are meant, ``[row, token]``: prompt, then what came after."""
    prompt, later = step[which], step["later_" + which]
    copies = step.get("copies", 0)
    if copies and which == "queries":
        # One pass of a generation may be over both, and each has a step of its own.
        prompt, later = prompt & (step["when"] == "prefill"), later & (step["when"] == "decode")
    behind = later[:, None].expand(-1, total - prompt.shape[1])
    flags = torch.cat([prompt, behind], 1).to(like.device)
    return flags.repeat_interleave(copies, 0) if copies > 1 else flags


def given_mask(mask: Any, step: dict[str, Any], states: torch.Tensor, total: int) -> torch.Tensor:
    """The mask a mixer received; where it received none, the one its kernel makes for itself."""
    if mask is not None:
        given: torch.Tensor = mask
        return given
    if not step["boolean"] or 0 < step["window"] < total:
        # Eager attention would then see the future, and a kernel does not know of windows.
        raise ValueError(
            f"REFUSED: {step['by']}: layer {step['layer']} received no mask, where its kind of "
            "attention needs one, so it is not known what its queries can see"
        )
    queries = states.shape[1]
    readable = torch.ones(1, 1, queries, total, dtype=torch.bool, device=states.device)
    return readable.tril(total - queries) if step["causal"] and queries > 1 else readable


def is_readable(mask: torch.Tensor) -> torch.Tensor:
    """Where a boolean or an additive mask lets a query read a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def flags_over(step: dict[str, Any], which: str, over: torch.Tensor, total: int) -> torch.Tensor:
    """Which of the keys that a mask, or weights, cover are meant, ``[row, key]``."""
    keys = flags_of(step, which, total, over)
    spare = over.shape[-1] - total
    # A cache of fixed size has empty columns at the end, a windowed one lacks the oldest.
    return torch.nn.functional.pad(keys, (0, spare)) if spare > 0 else keys[:, -over.shape[-1] :]


def blocked_pairs(
    step: dict[str, Any], mask: torch.Tensor, total: int, heads: int = 1
) -> torch.Tensor:
    """Pairs that are meant, ``[row, 1 or head, query, key]``, of those that a mask covers."""
    queries = flags_of(step, "queries", total, mask)[:, -mask.shape[-2] :]
    keys = flags_over(step, "keys", mask, total)
    pairs = queries[:, None, :, None] & keys[:, None, None, :]
    if "heads" not in step:
        return pairs
    meant = torch.zeros(1, max(heads, step["of_heads"]), 1, 1, dtype=torch.bool, device=mask.device)
    meant[:, list(step["heads"])] = True
    return pairs & meant


def block(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Hide the step's keys from its queries in the mask that one mixer receives."""
    site = model.get(step["path"])
    args, kwargs = site.inputs
    states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    given = kwargs["attention_mask"]
    # Steps of one operation have these tensors in common, and layers the mask they receive.
    slot = f"mask {step['when']} {id(step['queries'])} {id(step['keys'])} "
    slot += f"{step['causal']} {step['window']} {step.get('heads')}"
    setting = (decoded, step["behind"], step["boolean"], *states.shape[:2], states.device)
    known = store.get(slot)
    if known is None or known["given"] is not given or known["setting"] != setting:
        after = blocked_mask(given, step, states, decoded)
        known = {"given": given, "setting": setting, "after": after}
        store[slot] = known
    site.inputs = (args, {**kwargs, "attention_mask": known["after"]})


def blocked_mask(
    given: Any, step: dict[str, Any], states: torch.Tensor, decoded: int
) -> torch.Tensor:
    """The mask in which the keys are hidden; refuses one that leaves a query nothing."""
    total = step["queries"].shape[1] + step["behind"] + decoded
    before = given_mask(given, step, states, total)
    pairs = blocked_pairs(step, before, total)
    if before.dtype == torch.bool:
        after = before & ~pairs
    else:
        after = before.masked_fill(pairs, torch.finfo(before.dtype).min)
    # Other operations may have hidden the rest, so that each step has to look.
    left = is_readable(before).any(-1) & ~is_readable(after).any(-1)
    if left.any():
        row, _, query = left.nonzero()[0].tolist()
        sample = row // step.get("copies", 1)
        position = total - before.shape[-2] + query
        raise ValueError(
            f"REFUSED: {step['by']}: the token at position {position} of sample {sample} is left "
            f"without any key in layer {step['layer']}; leave it out of the queries, or leave it "
            "itself among the keys"
        )
    return after
