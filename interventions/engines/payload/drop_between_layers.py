"""Dropping tokens from the sequence between two decoder layers, inside a trace.

What a decoder makes once for all its layers (masks, rotary tables, positions) is as long as the
whole sequence, for the layers without the tokens too, and while decoding masks are as long as the
first layer's cache, which those layers do not have. So each of them gets arguments of its own, all
shortened alike, and an argument that is not understood is refused.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .shorter_tensors import is_mask, key_columns, left_over, made_mask, shorter_mask, taken


def drop_between_layers(
    model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int
) -> None:
    """Lead only the step's tokens, and whatever came after the prompt, through the last layers."""
    left = None
    for layer in step["layers"]:
        site = model.get(layer["path"])
        args, given = site.inputs
        states = args[0] if args else given["hidden_states"]
        first = left is None
        if left is None:
            left = left_over(step, states.shape[0], decoded, states.device)
        whole, width = not decoded, step["behind"] + 1
        if whole:
            width = left["total"] if first else left["take"].shape[1]
        if states.ndim != 3 or states.shape[:2] != (len(left["take"]), width):
            refuse(
                step,
                f"{layer['path']} receives {list(states.shape)}, where {len(left['take'])} "
                f"sequences of {width} tokens were expected",
            )
        if any(value is not None for value in args[1:]):
            refuse(step, f"{layer['path']} receives more than states without naming it")
        changed = dict(given)
        if whole:
            for name, value in given.items():
                if name not in ("hidden_states", "attention_mask"):
                    changed[name] = shorter_argument(step, left, name, value)
        if whole and first:
            states = taken(states, left["take"].to(states.device))
        mask = layer_mask(step, left, layer, given, width if decoded else 0)
        if mask is not None:
            changed["attention_mask"] = mask
        if args:
            args = (states, *args[1:])
        else:
            changed["hidden_states"] = states
        site.inputs = (args, changed)


def refuse(step: dict[str, Any], why: str) -> None:
    """End the run."""
    raise ValueError(
        f"REFUSED: {step['by']}: rows cannot be taken out between this model's layers: {why}; "
        "use method='mask'"
    )


def once(left: dict[str, Any], value: Any, key: Any, make: Any) -> Any:
    """What was made of a value for an earlier layer, or made now: most layers share theirs."""
    made = left["made"]
    if (id(value), key) not in made:
        # The value is kept too, so that no other one can come to have its id.
        made[id(value), key] = (value, make())
    return made[id(value), key][1]


def shorter_argument(step: dict[str, Any], left: dict[str, Any], name: str, value: Any) -> Any:
    """The part of one argument of a layer that belongs to the tokens left."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if type(value) in (tuple, list):
        return type(value)(shorter_argument(step, left, name, part) for part in value)
    if isinstance(value, torch.Tensor):
        return once(left, value, name, lambda: shorter_rows(step, left, name, value))
    if name != "past_key_values" and not hasattr(value, "get_seq_length"):
        refuse(step, f"it is not known how to cut their argument {name!r}, {type(value).__name__}")
    return value


def shorter_rows(
    step: dict[str, Any], left: dict[str, Any], name: str, value: torch.Tensor
) -> torch.Tensor:
    """The tokens left of a tensor ``[sample, token, …]``, or of positions with an axis before."""
    take = left["take"].to(value.device)
    samples, total = len(take), left["total"]
    # Places in an image: [axis, sample, token], rotary tables of them with a width behind.
    ndim = {"position_ids": 3, "position_embeddings": 4}.get(name)
    if value.ndim == ndim and value.shape[1] == samples and value.shape[2] == total:
        return torch.stack([taken(axis, take) for axis in value])
    known = value.ndim in (2, 3) and value.shape[0] in (1, samples) and value.shape[1] == total
    if not known or value.ndim == ndim == 3:
        refuse(step, f"it is not known how to cut their argument {name!r}, {list(value.shape)}")
    return taken(value, take)


def layer_mask(
    step: dict[str, Any],
    left: dict[str, Any],
    layer: dict[str, Any],
    given: dict[str, Any],
    queries: int,
) -> Any:
    """The mask of one layer, or None where it received none and needs none.

    ``queries`` are all left; 0 for a pass over the whole sequence.
    """
    mask, whole = given.get("attention_mask"), not queries
    if mask is None and bool(left["kept"].all()):
        # Whether a query sees all or what lies before it: rows that leave change neither.
        return None
    expected, queries = queries or left["total"], queries or left["take"].shape[1]
    columns = key_columns(given.get("past_key_values"), layer["index"], queries, left)
    if columns < left["take"].shape[1]:
        refuse(step, f"the cache of {layer['path']} holds {columns} tokens at most")
    if mask is None:
        if "attention_mask" not in given or not layer["boolean"] or layer["window"]:
            refuse(step, f"{layer['path']} received no mask, where its kind of attention needs one")
        causal = layer["causal"]
        return once(
            left, None, (columns, causal), lambda: made_mask(left, queries, columns, causal)
        )
    if not is_mask(mask, left, expected):
        what = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        refuse(step, f"it is not known how to cut the mask of {layer['path']}, {what}")
    return once(left, mask, columns, lambda: shorter_mask(left, mask, columns, whole))
