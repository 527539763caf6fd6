"""Stage 1: the language model, on text alone.

Scenes alone do not teach a decoder to look things up: it settles on answering with *some*
object of the scene. Copying first, then dense lookups, form that circuit within minutes.
"""

from collections import defaultdict
from collections.abc import Sequence

import documents
import numpy as np
import torch
from models import language_model, predict, seeded
from packing import Document, Packed, pack
from torch import Tensor, nn
from training import Graded, Size, Stage, decay_groups
from workers import Worker

SEED, RATE = 1, 1e-3
COPYING, SOLVED = "copy", 0.6
COPIES = "copying is solved"
# What is read once copying is solved: each kind up to its bound in [0, 1), scenes in words beyond.
# Lookups become the largest part when questions about one object are mostly answered, and what
# is missing is finding the right one of several.
LOOKUPS_FROM = 2000
KINDS = (documents.copies, documents.lookups, documents.facts, documents.comparisons)
EARLY, LATE = (0.06, 0.34, 0.40, 0.55), (0.03, 0.48, 0.54, 0.66)


def draw(rng: np.random.Generator, running: dict[str, float], step: int) -> Document:
    """Copies until copying works, then the mixture."""
    at = rng.random()
    if not running.get(COPIES):
        running[COPIES] = float(running.get(COPYING, 0.0) > SOLVED)
    if not running[COPIES]:
        return documents.copies(rng)
    bounds = LATE if step >= LOOKUPS_FROM else EARLY
    for kind, bound in zip(KINDS, bounds, strict=True):
        if at < bound:
            return kind(rng)
    return documents.scene_in_words(documents.train_scene(rng), rng)


def weighted_loss(logits: Tensor, packed: Packed) -> Tensor:
    """Weighted mean cross-entropy."""
    entropy = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), packed.targets.flatten(), reduction="none"
    ).view(packed.targets.shape)
    return (entropy * packed.weights).sum() / packed.weights.sum()


def grade(
    logits: Tensor,
    packed: Packed,
    drawn: Sequence[Document],
    mark: Sequence[str] | None = None,
) -> Graded:
    """Whole answers right, per task; for documents without questions, heavy tokens right.

    With `mark`, a word for each document, names of tasks begin with their document's.
    """
    marks = mark or [""] * len(drawn)
    correct = logits.detach().argmax(-1) == packed.targets
    graded: Graded = defaultdict(list)
    for row, (spans, document) in enumerate(zip(packed.answers, drawn, strict=True)):
        for task, first, end in spans:
            graded[marks[row] + task].append(float(correct[row, first:end].all()))
        heavy = packed.weights[row] >= 1
        if not spans and heavy.any():
            name = "lookup" if max(document.weights) > 1 else COPYING
            graded[name].append(float(correct[row][heavy].float().mean()))
    return graded


def stage(size: Size, worker: Worker) -> Stage:
    """The stage, with a fresh model under `modules["language"]`."""
    with seeded(SEED):
        model = language_model()
    model.to(worker.device)

    def batch(
        rng: np.random.Generator, running: dict[str, float], step: int
    ) -> tuple[Tensor, Graded]:
        drawn = [draw(rng, running, step) for _ in range(size.batch)]
        packed = pack(drawn).to(worker.device)
        with torch.autocast(worker.device, torch.bfloat16):
            embedded = model.model.embed_tokens(packed.ids)
            logits = predict(model.model, model.lm_head, embedded, packed)
        return weighted_loss(logits, packed), grade(logits, packed, drawn)

    groups = decay_groups([model], RATE)
    modules = nn.ModuleDict({"language": model})
    # The rate stays: what has been learnt here is refined by the joint stage, where it falls.
    return Stage("language", SEED, size, groups, modules, batch, steady=1.0)
