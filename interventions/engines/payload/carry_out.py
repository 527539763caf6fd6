"""Carrying out steps inside a trace: what of this room runs on a remote server starts here.

NDIF's sandbox admits plain functions over torch with plain dict arguments, so this module and
those it imports use nothing but torch and name no class of ours. They are shipped by value.
Every write goes to a clone: the tensors a model passes on are shared between a layer's output
and the next layer's input, and an in-place edit would change what somebody else has already read.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .attention_masks import block
from .attention_weights import zero_weights
from .drop_before_decoder import remove
from .drop_between_layers import cut
from .written_values import means, noise, scaled


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


def states_at(site: Any, step: dict[str, Any]) -> torch.Tensor:
    """The states on the step's side of a module, ``[sample, token, d]``."""
    if step.get("side") != "output":
        entering: torch.Tensor = site.input
        return entering
    output = site.output
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states.reshape(step["samples"], -1, states.shape[-1])


def put_back(site: Any, step: dict[str, Any], changed: torch.Tensor) -> None:
    """Let a module receive or return other states, in the shape that it had them in."""
    if step.get("side") != "output":
        site.input = changed
        return
    output = site.output
    if isinstance(output, tuple):
        site.output = (changed.reshape(output[0].shape), *output[1:])
    else:
        site.output = changed.reshape(output.shape)


def read(model: Any, store: dict[str, Any], step: dict[str, Any]) -> None:
    """Leave the states on the step's side of a module under its key."""
    states = states_at(model.get(step["path"]), step)
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


def given_values(states: torch.Tensor, store: dict[str, Any], step: dict[str, Any]) -> torch.Tensor:
    """What a step writes: what an earlier one read or the step brings along, group by group."""
    values: torch.Tensor = step["values"] if "values" in step else store[step["key"]]
    if "from_group" in step:
        values = means(values, step["from_group"])
    if "group" in step:
        values = values[step["group"].to(values.device)]
    if "ratio" in step:
        values = values * step["ratio"]
    if "norm" in step:
        values = normed(values, states, step)
    # While decoding there is one token for every row.
    behind = step["when"] != "prefill" and values.ndim == 2
    return values[:, None] if behind else values


def write(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Replace the states on the step's side of a module at its tokens."""
    site = model.get(step["path"])
    # Wait for the own site first: what the key holds is only there once the reader has run.
    states = states_at(site, step)
    changed = states.clone()
    index = index_of(step, states)
    if step["do"] == "noise":
        values = noise(states[index], step, decoded)
    elif step["do"] == "scale":
        values = scaled(states[index], store, step)
    else:
        values = given_values(states, store, step)
    changed[index] = values.to(states)
    put_back(site, step, changed)


def carry_out(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Do one step at the current occurrence of its site, the given decoding step (0: prompt)."""
    if step["do"] == "block":
        block(model, store, step, decoded)
    elif step["do"] == "remove":
        remove(model, step, decoded)
    elif step["do"] == "cut":
        cut(model, step, decoded)
    elif step["do"] == "zero-weights":
        zero_weights(model, store, step, decoded)
    elif step["do"] == "zero":
        zero(model, step)
    elif step["do"] == "read":
        read(model, store, step)
    else:
        write(model, store, step, decoded)


def carry_out_when(model: Any, store: dict[str, Any], step: dict[str, Any], steps: Any) -> None:
    """Do one step in its phase: at the first pass, or at every decoding step after it."""
    if step["when"] == "prefill":
        carry_out(model, store, step, 0)
    else:
        for decoded in steps[1:]:
            carry_out(model, store, step, decoded)
