"""Sinks by how they come about: norm in the encoder, turn to the first token, massive entries.

Each criterion looks at one token and at nothing that another one looks at, so that what they have
in common says something.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...lens.errors import Unsupported
from ...lens.inputs.batch import Batch
from ...lens.markers.class_of_direction import (
    NORM_OUTLIER,
    NORM_RATIO,
    SINK_COSINE,
    SINK_LENGTH,
    SINK_MARGIN,
)
from ...lens.markers.discovery import MASSIVE, vit_norms
from ...lens.model import VisualLM
from ...lens.runs.run import Run

# The least an entry is by itself that counts as massive, docs/method.md (e).
_MASSIVE_ENTRY = 100.0

Boundary = tuple[int, str]
"""A place in the residual stream: behind which sublayer of which layer."""


@dataclass(frozen=True, eq=False)
class Mechanisms:
    """What is seen of every visual token of a batch.

    Attributes:
        boundaries: Places in the residual stream, in the model's order.
        entry: States as the tokens enter, ``[token, d]``.
        vit_norm: Norm before the projector, ``[token]``; NaN where it could not be read.
        cosine: To the first token of the sequence at every boundary, ``[token, boundary]``.
        turned: The first boundary at which a token has the first token's direction, more than
            others and with a longer state; -1 for none, ``[token]``.
        massive: Whether an entry is massive at some boundary, ``[token]``.
    """

    boundaries: list[Boundary]
    entry: Float[np.ndarray, "token d"]
    vit_norm: Float[np.ndarray, " token"]
    cosine: Float[np.ndarray, "token boundary"]
    turned: Int[np.ndarray, " token"]
    massive: Bool[np.ndarray, " token"]


def mechanisms(model: VisualLM, batch: Batch) -> Mechanisms:
    """Run a batch once and look at its visual tokens; where sublayers cannot be told apart, layers.

    Raises:
        Unsupported: The model has no single residual stream.
    """
    visual, mask = batch.visual, batch.inputs["attention_mask"].cpu()
    first = (mask > 0).int().argmax(1)
    wanted = np.zeros(mask.shape, dtype=bool)
    wanted[visual.sample, visual.position] = True
    wanted[np.arange(len(batch)), first] = True
    try:
        model.anatomy.require("sublayers")
        parts: list[str] = ["residual", "attention"]
        run = model.run(batch, capture=parts, tokens=wanted, logits=None)  # type: ignore[arg-type]
    except Unsupported:
        run = model.run(batch, capture="residual", tokens=wanted, logits=None)
    where = torch.full(mask.shape, -1)
    where[run.sample.cpu(), run.position.cpu()] = torch.arange(len(run.sample))
    own = where[visual.sample, visual.position]
    of_first = where[visual.sample, first[visual.sample]]
    boundaries, cosines, norms, largest = [], [], [], []
    for boundary, stream in _streams(run):
        states = stream.float().cpu()
        boundaries.append(boundary)
        cosines.append(torch.cosine_similarity(states[own], states[of_first], dim=1))
        norms.append(states[own].norm(dim=1))
        largest.append(_massive(states[own], visual.sample))
    cosine, norm = torch.stack(cosines, 1).double().numpy(), torch.stack(norms, 1).numpy()
    turned = _turned(cosine, norm, visual.sample)
    turned[visual.position == first[visual.sample].numpy()] = -1
    entry = run.residual[0][own.to(run.residual[0].device)].float()
    return Mechanisms(
        boundaries,
        entry.cpu().double().numpy(),
        vit_norms(model, batch.inputs, entry),
        cosine,
        turned,
        np.any(largest, axis=0),
    )


def loud(vit_norm: Float[np.ndarray, " token"]) -> Bool[np.ndarray, " token"]:
    """Tokens whose norm before the projector stands out by a robust z-score and by a factor."""
    median = np.median(vit_norm)
    spread = 1.4826 * float(np.median(np.abs(vit_norm - median))) or np.inf
    far: Bool[np.ndarray, " token"] = (vit_norm - median) / spread >= NORM_OUTLIER
    found: Bool[np.ndarray, " token"] = far & (vit_norm >= NORM_RATIO * median)
    return found


def _streams(run: Run) -> Iterator[tuple[Boundary, Tensor]]:
    """The residual stream behind every sublayer, or every layer where these are not known."""
    for layer in range(len(run.residual) - 1):
        if layer in run.attention:
            yield (layer, "attention"), run.residual[layer] + run.attention[layer]
        yield (layer, "ffn" if layer in run.attention else "layer"), run.residual[layer + 1]


def _turned(
    cosine: Float[np.ndarray, "token boundary"],
    norm: Float[np.ndarray, "token boundary"],
    sample: Int[np.ndarray, " token"],
) -> Int[np.ndarray, " token"]:
    """The first boundary where each token has turned; -1 for none."""
    there = cosine >= SINK_COSINE
    for one in np.unique(sample):
        here = sample == one
        there[here] &= cosine[here] - np.median(cosine[here], axis=0) >= SINK_MARGIN
        there[here] &= norm[here] >= SINK_LENGTH * np.median(norm[here], axis=0)
    found: Int[np.ndarray, " token"] = np.where(there.any(1), there.argmax(1), -1)
    return found


def _massive(
    states: Float[Tensor, "token d"], sample: Int[np.ndarray, " token"]
) -> Bool[np.ndarray, " token"]:
    """Tokens with an entry that is massive against all entries of their sample's tokens."""
    sizes, found = states.abs(), np.zeros(len(states), dtype=bool)
    for one in np.unique(sample):
        here = sample == one
        mine = sizes[torch.from_numpy(here)]
        least = max(_MASSIVE_ENTRY, MASSIVE * float(mine.median()))
        found[here] = (mine.amax(1) >= least).numpy()
    return found
