"""Which tokens a plan takes out of which layers: states that are computed there mean nothing.

A token that is dropped while states are captured is only hidden from the others, and its own state
goes on being computed (see `PruneTokens`). Its words would be read from nothing.
"""

from collections.abc import Collection, Iterator

import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray

from ...interventions.plans.plan import Plan
from ...lens.inputs.batch import Batch

Mask = Bool[torch.Tensor, " token"]


def absent_tokens(
    plan: Plan | None, batch: Batch, layers: Collection[int], n_layers: int
) -> dict[int, Mask]:
    """By layer the visual tokens that the stream entering it does not have, ``[token]``.

    Args:
        plan: The plan; None drops nothing.
        batch: Whose tokens are meant.
        layers: Residual streams, 0 to ``n_layers``.
        n_layers: Of the model.
    """
    absent = {layer: np.zeros(len(batch.visual), dtype=bool) for layer in layers}
    for without, tokens in dropped_by(plan, batch, n_layers):
        for layer, mask in absent.items():
            # A state is there where the layer before left it or the layer behind takes it in.
            around = {max(layer - 1, 0), min(layer, n_layers - 1)}
            if around <= without:
                mask |= tokens
    return {layer: torch.from_numpy(mask) for layer, mask in absent.items()}


def dropped_by(
    plan: Plan | None, batch: Batch, n_layers: int
) -> Iterator[tuple[set[int], NDArray[np.bool_]]]:
    """For every operation that drops tokens the layers without them, and these, ``[token]``."""
    place = batch.visual.sample, batch.visual.position
    for operation in plan or ():
        if without := set(operation.absent(n_layers)):
            yield without, operation.selections(batch)["tokens"].prompt[place]
