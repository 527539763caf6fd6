"""Reading activations inside a trace: the only code of this room that runs on a remote server.

NDIF's sandbox admits plain functions over torch with plain dict and list arguments, so this
module imports nothing but torch and names no class of ours. It is shipped by value.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch


def tensor_of(output: Any) -> torch.Tensor:
    """The tensor in a module's output, which may be the first entry of a tuple or list."""
    states: torch.Tensor = output[0] if isinstance(output, tuple | list) else output
    return states


def by_sample(states: torch.Tensor, samples: int) -> torch.Tensor:
    """States ``[sample, token, d]``, also where a module returns all tokens in one long row.

    Mixtures of experts and some attention modules flatten the batch into ``[sample * token, d]``.
    """
    return states.reshape(samples, -1, states.shape[-1])


def read_sites(
    model: Any, sites: list[dict[str, Any]], samples: int, rows: Any, columns: Any
) -> dict[str, Any]:
    """Read activations at selected (sample, position) pairs, in the order the model makes them.

    Sites are ``{"key", "path", "side", "scale"}`` in firing order, with side ``input`` or
    ``output`` and the factor by which the value enters the residual stream. Returns per key the
    states, ``[selected, d]``, as clones that later edits cannot change.
    """
    found = {}
    for site in sites:
        envoy = model.get(site["path"])
        value = envoy.input if site["side"] == "input" else tensor_of(envoy.output)
        value = by_sample(value, samples)
        # Advanced indexing copies, so nothing written later reaches what was read here.
        kept = value[rows.to(value.device), columns.to(value.device)]
        found[site["key"]] = kept if site["scale"] == 1.0 else kept * site["scale"]
    return found
