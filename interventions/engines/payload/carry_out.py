"""Carrying out steps inside a trace: what of this room runs on a remote server starts here.

NDIF's sandbox admits plain functions over torch with plain dict arguments, so this module and
those it imports use nothing but torch and name no class of ours. They are shipped by value.
Every write goes to a clone: the tensors a model passes on are shared between a layer's output
and the next layer's input, and an in-place edit would change what somebody else has already read.

Every function that carries a step out takes the traced model, what steps leave to one another,
the step as a plain dict, and which decoding step this is (0 for the prompt).
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch

from .written_values import kept, means, noise, scaled


def index_of(step: dict[str, Any], like: torch.Tensor) -> Any:
    """Index of the step's tokens in a tensor ``[sample, token, d]``."""
    return step["rows"].to(like.device), step["columns"].to(like.device)


def zero(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Replace states by zero at the step's tokens."""
    site = model.get(step["path"])
    if step["side"] == "input":
        states = states_at(site, step)
        replace(site, step, states, torch.zeros_like(states[index_of(step, states)]))
        return
    output = site.output
    states = output[0] if isinstance(output, tuple) else output
    changed = states.clone(memory_format=torch.contiguous_format)
    # Some modules return one row per token, whatever the sample: [sample * token, d].
    flat = changed.ndim == 2
    by_sample = changed.view(step["samples"], -1, changed.shape[-1]) if flat else changed
    by_sample[index_of(step, states)] = 0
    site.output = (changed, *output[1:]) if isinstance(output, tuple) else changed


def zero_heads(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Make what some heads gathered zero at the step's tokens, before it is projected back."""
    site = model.get(step["path"])
    states = site.input
    # A bridge of TransformerLens has the heads apart already.
    width = states.shape[-1] if states.ndim == 4 else states.shape[-1] // step["of_heads"]
    heads = states.reshape(step["samples"], -1, step["of_heads"], width)
    changed = heads.clone()
    mine = changed[index_of(step, states)]
    mine[:, list(step["heads"])] = 0
    changed[index_of(step, states)] = mine
    site.input = changed.reshape(states.shape)


def states_at(site: Any, step: dict[str, Any]) -> torch.Tensor:
    """The states on the step's side of a module, ``[sample, token, d]``."""
    if step["side"] == "input":
        entering: torch.Tensor = site.input
        return entering
    output = site.output
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states.reshape(step["samples"], -1, states.shape[-1])


def put_back(site: Any, step: dict[str, Any], changed: torch.Tensor) -> None:
    """Let a module receive or return other states, in the shape that it had them in."""
    if step["side"] == "input":
        site.input = changed
        return
    output = site.output
    if isinstance(output, tuple):
        site.output = (changed.reshape(output[0].shape), *output[1:])
    else:
        site.output = changed.reshape(output.shape)


def replace(site: Any, step: dict[str, Any], states: torch.Tensor, values: torch.Tensor) -> None:
    """Let other values take the place of the states at the step's tokens."""
    changed = states.clone()
    changed[index_of(step, states)] = values.to(states)
    put_back(site, step, changed)


def read(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Leave the states on the step's side of a module in its slot."""
    states = states_at(model.get(step["path"]), step)
    store[step["slot"]] = states[index_of(step, states)]


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
    values: torch.Tensor = step["values"] if "values" in step else kept(store, step)
    if "from_group" in step:
        values = means(values, step["from_group"])
    if "group" in step:
        values = values[step["group"].to(values.device)]
    if "ratio" in step:
        values = values * step["ratio"]
    if "norm" in step:
        values = normed(values, states, step)
    return values


def write(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Overwrite the states on the step's side of a module with what it brings along or finds."""
    site = model.get(step["path"])
    # Wait for the own site first: what the slot holds is only there once the reader has run.
    states = states_at(site, step)
    replace(site, step, states, given_values(states, store, step))


def add_noise(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Overwrite states with noise of their own norms."""
    site = model.get(step["path"])
    states = states_at(site, step)
    replace(site, step, states, noise(states[index_of(step, states)], step, decoded))


def add(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Add a vector to states."""
    site = model.get(step["path"])
    states = states_at(site, step)
    mine = states[index_of(step, states)]
    replace(site, step, states, mine + step["factor"] * step["values"].to(mine))


def scale(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
    """Scale states by a factor or to a norm."""
    site = model.get(step["path"])
    states = states_at(site, step)
    replace(site, step, states, scaled(states[index_of(step, states)], store, step))
