"""Carrying out steps inside a trace: what of this room runs on a remote server starts here.

NDIF's sandbox admits plain functions over torch with plain dict arguments, so this module and
those it imports use nothing but torch and name no class of ours. They are shipped by value.
Every write goes to a clone: the tensors a model passes on are shared between a layer's output
and the next layer's input, and an in-place edit would change what somebody else has already read.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .masking import block
from .removal import remove
from .weights import zero_weights


def index_of(step: dict[str, Any], like: torch.Tensor) -> Any:
    """Index of the step's tokens in a tensor ``[sample, token, d]``."""
    rows = step["rows"].to(like.device)
    return (rows, step["columns"].to(like.device)) if step["when"] == "prefill" else rows


def zero(model: Any, step: dict[str, Any]) -> None:
    """Replace a module's output by zero at the step's tokens."""
    site = model.get(step["path"])
    output = site.output
    states = output[0] if isinstance(output, tuple) else output
    changed = states.clone(memory_format=torch.contiguous_format)
    # Some modules return one row per token, whatever the sample: [sample * token, d].
    flat = changed.ndim == 2
    by_sample = changed.view(step["samples"], -1, changed.shape[-1]) if flat else changed
    by_sample[index_of(step, states)] = 0
    site.output = (changed, *output[1:]) if isinstance(output, tuple) else changed


def read(model: Any, store: dict[str, Any], step: dict[str, Any]) -> None:
    """Leave the states entering a module under the step's key."""
    states = model.get(step["path"]).input
    store[step["key"]] = states[index_of(step, states)]


def normed(values: torch.Tensor, states: torch.Tensor, step: dict[str, Any]) -> torch.Tensor:
    """The step's values with norms like those of each sample's other tokens."""
    rows, others = step["rows"].to(states.device), step["others"].to(states.device)
    scaled = values.clone()
    for sample in rows.unique().tolist():
        mine = rows == sample
        width = others.shape[1]
        wanted = states[sample, :width][others[sample]].norm(dim=-1).median()
        norms = values[mine].norm(dim=-1, keepdim=True)
        scaled[mine] = values[mine] * (
            wanted / (norms if step["norm"] == "matched" else norms.median())
        )
    return scaled


def write(model: Any, store: dict[str, Any], step: dict[str, Any]) -> None:
    """Replace the states entering a module by those under the step's key, or by given ones."""
    site = model.get(step["path"])
    # Wait for the own site first: what the key holds is only there once the reader has run.
    states = site.input
    changed = states.clone()
    values = step["values"] if "values" in step else store[step["key"]]
    if "norm" in step:
        values = normed(values, states, step)
    changed[index_of(step, states)] = values.to(states)
    site.input = changed


def carry_out(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Do one step at the current occurrence of its site, the given decoding step (0: prompt)."""
    if step["do"] == "block":
        block(model, store, step, decoded)
    elif step["do"] == "remove":
        remove(model, step, decoded)
    elif step["do"] == "zero-weights":
        zero_weights(model, step, decoded)
    elif step["do"] == "zero":
        zero(model, step)
    elif step["do"] == "read":
        read(model, store, step)
    else:
        write(model, store, step)


def carry_out_when(model: Any, store: dict[str, Any], step: dict[str, Any], steps: Any) -> None:
    """Do one step in its phase: at the first pass, or at every decoding step after it."""
    if step["when"] == "prefill":
        carry_out(model, store, step, 0)
    else:
        for decoded in steps[1:]:
            carry_out(model, store, step, decoded)
