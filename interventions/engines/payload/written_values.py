"""What takes a state's place inside a trace: a mean, noise, or the state itself at another length.

A mean that rounds would change what was alike already, so it is counted from its first member; and
noise drawn where it is needed would differ between machines, engines and paddings, so it is drawn
on the CPU from a seed of its sample's own.
"""

from __future__ import annotations  # a remote run is spared the annotations' modules

from typing import Any

import torch


def wide(states: torch.Tensor) -> torch.Tensor:
    """States in float32 at least, for sums and norms."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def means(states: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean ``[group, d]`` of states ``[source, d]``; equal states average to themselves.

    Groups are counted from 0 without a gap, ``[source]``.
    """
    groups, exact = groups.to(states.device), wide(states)
    found = []
    for group in range(int(groups.max()) + 1):
        mine = exact[groups == group]
        found.append(mine[0] + (mine - mine[0]).mean(0))
    return torch.stack(found)


def noise(states: torch.Tensor, step: dict[str, Any], decoded: int) -> torch.Tensor:
    """Random directions with the norms of the given states, ``[selected, d]``."""
    drawn = []
    own = torch.stack([step["rows"].to(step["seeds"]), step["seeds"]], dim=1)
    found, counts = torch.unique_consecutive(own, dim=0, return_counts=True)
    for (_, seed), count in zip(found.tolist(), counts.tolist(), strict=True):
        generator = torch.Generator().manual_seed((seed + decoded * step["stride"]) % 2**63)
        size = (count, states.shape[-1])
        drawn.append(torch.randn(size, generator=generator, dtype=torch.float32))
    exact = wide(states)
    directions = torch.nn.functional.normalize(torch.cat(drawn), dim=-1).to(exact)
    made: torch.Tensor = directions.view_as(exact) * exact.norm(dim=-1, keepdim=True)
    return made


def kept(store: dict[str, Any], step: dict[str, Any]) -> torch.Tensor:
    """The states in a step's slot; at a generated token its own, else those of the prompt."""
    own = store.get(step["slot"])
    found: torch.Tensor = store[step["prompt_slot"]] if own is None else own
    return found


def scaled(states: torch.Tensor, store: dict[str, Any], step: dict[str, Any]) -> torch.Tensor:
    """States ``[selected, d]`` times the step's factor, or with the median norm of its slot's."""
    if "factor" in step:
        times: torch.Tensor = states * step["factor"]
        return times
    norms = wide(kept(store, step)).norm(dim=-1)
    groups = step["from_group"].to(norms.device)
    medians = [norms[groups == group].median() for group in range(int(groups.max()) + 1)]
    wanted = torch.stack(medians).to(states.device)[step["group"].to(states.device)]
    exact = wide(states)
    # A state without a direction stays what it is.
    own = exact.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    made: torch.Tensor = exact * (wanted[:, None] / own)
    return made
