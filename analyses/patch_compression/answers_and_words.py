"""Asking a model about the images of a benchmark, and reading the tokens of their cells."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress
from ...lens.readouts import Lens
from ...lens.readouts.lens import read_at
from .benchmark import PatchBenchmark
from .cells_of_batch import SampledTokens, sampled_tokens
from .chosen_answers import chosen_answers

DOING = "asking about single cells"


@dataclass(eq=False)
class Observed:
    """What was seen of every image and question.

    Attributes:
        chosen: The answer to each question.
        read: Per image the words of its sampled tokens, ``[layer, token, k]``.
        places: Per image which tokens these are.
        classes: Per image the class of the token in the cell; empty without markers.
    """

    chosen: list[str] = field(default_factory=list)
    read: list[NDArray[np.str_]] = field(default_factory=list)
    places: list[SampledTokens] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class LensHits:
    """What a lens names at one layer.

    Attributes:
        cell: Whether the token of each image's cell is read as what every image shows; its own is
            on the diagonal.
        neighbours: Share of the tokens beside the cell that are read as what is in it.
        others: The same of the drawn tokens.
        n_others: How many were drawn in each image.
    """

    cell: Bool[np.ndarray, "image truth"]
    neighbours: Float[np.ndarray, " image"]
    others: Float[np.ndarray, " image"]
    n_others: int


def observed(
    model: VisualLM,
    drawn: PatchBenchmark,
    lens: Lens,
    markers: Markers | None,
    k: int,
    others: int,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> Observed:
    """Answers to all questions; and the words of the cell's and other tokens, at every layer."""
    seen, questions = Observed(), drawn.questions
    rng = np.random.default_rng(seed)
    for start in range(0, len(drawn.items), batch_size):
        part = range(start, min(start + batch_size, len(drawn.items)))
        batch = model.encode(
            [[drawn.images[i]] for i in part],
            [next(q.prompt for q in questions if q.item == i) for i in part],
        )
        places = [
            sampled_tokens(batch.visual, row, drawn.items[i].box, others, rng)
            for row, i in enumerate(part)
        ]
        seen.places += places
        seen.read += _words(model, batch, places, lens, k)
        if markers is not None:
            labels = markers.classify(model, batch).labels
            seen.classes += [str(labels[place.cell]) for place in places]
    for start in range(0, len(questions), batch_size):
        some = questions[start : start + batch_size]
        seen.chosen += chosen_answers(model, drawn.images, some)
        progress(DOING, start + len(some), len(questions))
    return seen


def _words(
    model: VisualLM, batch: Batch, places: Sequence[SampledTokens], lens: Lens, k: int
) -> list[NDArray[np.str_]]:
    """Per image the k words of its sampled tokens, ``[layer, token, k]``."""
    streams = model.run(batch, capture="residual", logits=None).residual
    chosen = np.concatenate([place.tokens for place in places])
    index = torch.from_numpy(chosen)
    by_layer = np.stack(
        [
            read_at(lens, states[index.to(states.device)], k, layer).words
            for layer, states in streams.items()
        ]
    )
    ends = np.cumsum([len(place.tokens) for place in places])[:-1]
    return np.split(by_layer, ends, axis=1)


def lens_hits_of(drawn: PatchBenchmark, seen: Observed) -> list[LensHits]:
    """By layer what the lens names."""
    return [_hits(drawn, seen, layer) for layer in range(len(seen.read[0]))]


def _hits(drawn: PatchBenchmark, seen: Observed, layer: int) -> LensHits:
    cell = [
        [bool(np.isin(words[layer, 0], item.words).any()) for item in drawn.items]
        for words in seen.read
    ]
    near, others = [], []
    for item, words, place in zip(drawn.items, seen.read, seen.places, strict=True):
        named = np.asarray(np.isin(words[layer], item.words).any(axis=1))
        near.append(named[place.near].mean() if place.near.any() else nan)
        others.append(named[place.drawn].mean() if place.drawn.any() else nan)
    n_others = int(seen.places[0].drawn.sum())
    return LensHits(np.array(cell), np.array(near), np.array(others), n_others)
