"""Zeroing what attention adds at some tokens by not computing it there.

Only their queries, scores and way back to the stream are left out: keys and values are computed
for all tokens, which the others read. Carried out inside a trace, as everything of this folder. It
takes attention of the plain form, which is tried before on the model.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .carry_out import zero
from .ffn_without_rows import compute_only, others_of


def attention_without_queries(
    model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int
) -> None:
    """Let attention gather for the other tokens only, and add zero at the step's."""
    without_queries(model, step)
    zero(model, store, step, decoded)


def without_queries(model: Any, step: dict[str, Any]) -> bool:
    """Compute a layer's attention for tokens that are not the step's; False where it is whole."""
    query = model.get(step["query"])
    args, given = query.inputs
    others = others_of(args, given, step)
    if others is None:
        return False
    compute_only(query, others)
    call = getattr(model.get(step["mixer"]).source, step["call"])
    args, given = call.inputs
    # In a batch each sample has its own; a call is for the same columns in all.
    columns = others.any(0).nonzero()[:, 0]
    shorter = shorter_call(args, given, columns, step)
    if shorter is not None:
        call.inputs = shorter
        call.output = longer(call.output, columns, others.shape[1])
    compute_only(model.get(step["projection"]), others)
    return shorter is not None


def shorter_call(args: Any, given: Any, columns: torch.Tensor, step: dict[str, Any]) -> Any:
    """What an attention function is given for some queries; None where that is not known."""
    module, query, key, value, *rest = args
    length, columns = query.shape[2], columns.to(query.device)
    # The mask is cut below; places the function does not look at, sinks are for each head.
    apart = ("attention_mask", "position_ids", "s_aux")
    unknown = [name for name, part in given.items() if name not in apart and is_wide(part)]
    mask = rest[0] if rest else given.get("attention_mask")
    if unknown or len(rest) > 1 or not len(columns):
        return None
    if mask is None and step["boolean"]:
        said = given.get("is_causal")
        if step["causal"] if said is None else said:
            # The one that the kernel makes for itself.
            places = torch.arange(key.shape[2], device=query.device)
            mask = (places <= columns[:, None])[None, None]
    elif mask is not None:
        if mask.ndim != 4 or mask.shape[2] not in (1, length):
            return None
        mask = mask[:, :, columns.to(mask.device)] if mask.shape[2] > 1 else mask
    positional = (module, query[:, :, columns], key, value)
    if rest:
        return (*positional, mask), given
    return positional, {**given, "attention_mask": mask}


def is_wide(part: Any) -> bool:
    """Whether an argument may hold something for each query."""
    return isinstance(part, torch.Tensor) and part.ndim > 1


def longer(output: Any, columns: torch.Tensor, length: int) -> Any:
    """What a function gathered for some queries, ``[sample, query, ...]``, zero for the others."""
    made = output[0] if isinstance(output, tuple) else output
    whole = made.new_zeros(made.shape[0], length, *made.shape[2:])
    whole[:, columns.to(made.device)] = made
    return (whole, *output[1:]) if isinstance(output, tuple) else whole


def outputs_of(model: Any, steps: list[dict[str, Any]]) -> list[torch.Tensor]:
    """What the attention of each step's layer returns, ``[sample, token, d]``."""
    return [states_of(model.get(step["mixer"]).output).clone() for step in steps]


def outputs_without(
    model: Any, steps: list[dict[str, Any]], whole: list[torch.Tensor]
) -> list[torch.Tensor]:
    """The same without the steps' queries, each layer behind what the whole ones before it made."""
    found = []
    for step, expected in zip(steps, whole, strict=True):
        shortened = without_queries(model, step)
        site = model.get(step["mixer"])
        output = site.output
        made = states_of(output)
        found.append(made if shortened else torch.full_like(made, float("nan")))
        site.output = (expected, *output[1:]) if isinstance(output, tuple) else expected
    return found


def states_of(output: Any) -> torch.Tensor:
    """The first thing that a module returns."""
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states
