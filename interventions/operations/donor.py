"""A batch with captures of a run of it: where states come from that are written elsewhere.

States are found again by sample and position; a token that was not captured is refused, and never
filled in by its neighbour.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.runs.run import Run
from ...lens.runs.run import Site as Capture

# Samples and positions of some tokens.
Places = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class GivenVector:
    """A vector of the residual stream that a plan was given."""

    values: Tensor  # the same before all layers, [d], or one for each, [n_layers + 1, d]

    def __eq__(self, other: object) -> bool:
        """The same tensor, as donors are equal that are the same objects."""
        return isinstance(other, GivenVector) and other.values is self.values

    def __hash__(self) -> int:
        return id(self.values)


# What a plan can be given under a name.
Given = Batch | Run | GivenVector


@dataclass(frozen=True, eq=False)
class Donor:
    """A batch and what was captured of it."""

    batch: Batch  # whose tokens they are
    run: Run  # the captures
    name: str = ""  # what a plan calls it; empty for an earlier pass over the same batch
    passes: int = 0  # how many passes over the batch it took

    def states(self, capture: Capture, layer: int, places: Places) -> Tensor:
        """The states of some tokens, ``[token, d]``."""
        run = self.run
        kept: Mapping[int, Tensor] = getattr(run, capture)
        if layer not in kept:
            raise InputError(
                f"donor {self.name!r} holds no {capture!r} of layer {layer} (it has "
                f"{sorted(kept) or 'none'}): run(batch, capture={capture!r}, tokens='all')"
            )
        number = np.full((len(self.batch), self.batch.length), -1)
        rows, columns = run.sample.cpu().numpy(), run.position.cpu().numpy()
        number[rows, columns] = np.arange(len(rows))
        wanted = number[places]
        if (wanted < 0).any():
            sample, position = (int(axis[wanted < 0][0]) for axis in places)
            raise InputError(
                f"donor {self.name!r} holds no state of the token at position {position} of its "
                f"sample {sample}: capture with tokens='all'"
            )
        states = kept[layer]
        return states[torch.as_tensor(wanted, device=states.device)].cpu()


def as_donor(name: str, given: Any) -> Given:
    """What a plan was given, a saved run loaded; InputError if it is no donor and no vector."""
    donor = Run.load(os.fspath(given)) if isinstance(given, str | os.PathLike) else given
    if isinstance(donor, np.ndarray):
        donor = torch.as_tensor(donor)
    if isinstance(donor, Tensor):
        if not (donor.is_floating_point() and donor.isfinite().all()):
            raise InputError(f"given({name}=…): a vector has finite floating-point numbers only")
        return GivenVector(donor)
    if not isinstance(donor, Batch | Run):
        raise InputError(
            f"given({name}=…): a donor is a Batch, a Run or the path of a saved Run, or a vector "
            f"(a tensor [d] or [layer, d]), not {type(given).__name__}"
        )
    if isinstance(donor, Run) and donor.batch is None:
        raise InputError(
            f"given({name}=…): this Run does not know its batch, so its tokens cannot be found: "
            "take one that model.run(batch, …) returned"
        )
    return donor
