"""Stages 4 and 5: the projector learns to speak to the language model, then all learn together.

The word embeddings stay those of the text-only stage, so that reading a visual token by its
nearest word says something about the picture and not about a common training.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import documents
import numpy as np
import torch
from binding import HALFWAY, READER_WEIGHT, readers, reading
from language import grade, weighted_loss
from models import (
    VISION_WIDTH,
    compiled,
    multimodal_model,
    patch_features,
    predict_and_read,
    seeded,
)
from packing import Document, Packed, fit, pack
from relations import relations
from tokens import IMAGE, VISUAL_TOKENS
from torch import Tensor, nn
from training import Graded, Size, Stage, decay_groups, weights
from twin import require, twin_accuracies
from vision import pixels
from workers import Worker

from embedlens.lens.scenes import COLUMNS, ROWS, Scene

ALIGN_SEED, ALIGN_RATE = 3, 2e-3
JOINT_SEED = 7
LANGUAGE_RATE, PROJECTOR_RATE, TOWER_RATE = 8e-4, 1e-3, 3e-4
# While the rates stay, half of the pictures are asked what takes binding; while they fall, what
# takes longest to learn. A background's name is one word among the many of the other answers, and
# is not learnt at all unless it counts for more.
STEADY = 1250 / 2800
LATE = ("background", "count", "position", "what-at", "letter", "caption")
LATE_WEIGHTS = {"background": 8.0, "count": 2.0}
TEXT_SHARE, FAVOURED_SHARE = 0.25, 0.5
# The text among the pictures: each kind up to its bound in [0, 1), scenes in words beyond.
TEXTS = (documents.lookups, documents.facts, relations, documents.cells)
BOUNDS = (0.12, 0.18, 0.38, 0.43)
LONGEST = 192
PLACE_WEIGHT = 0.3


def assemble(out: Path) -> tuple[Any, nn.ModuleDict]:
    """The multimodal model from the finished stages before, and place readers.

    The readers tell the row and the column of an object, one pair from one of its patches,
    the other from where a question names it. They are needed in training only.
    """
    with seeded(ALIGN_SEED):
        model: Any = multimodal_model()
        places = nn.ModuleDict(
            {
                "row": nn.Linear(VISION_WIDTH, len(ROWS)),
                "column": nn.Linear(VISION_WIDTH, len(COLUMNS)),
                "named": readers(),
            }
        )
    language = weights(out, "binding")
    places["named"].load_state_dict(part("places.", language))
    model.model.language_model.load_state_dict(part("language.model.", language))
    model.lm_head.load_state_dict(part("language.lm_head.", language))
    model.model.vision_tower.load_state_dict(part("tower.", weights(out, "vision")))
    return model, places


def align(size: Size, worker: Worker, out: Path, passes: float) -> Stage:
    """The projector alone; refuses a language model that has not learnt what it will need."""
    model, _ = assemble(out)
    model.to(worker.device)
    require(model.model.language_model, model.lm_head, worker, size.measure_on, passes)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    groups = decay_groups([model.model.multi_modal_projector], ALIGN_RATE)
    run = compiled(model.model.language_model, size.compiled)

    def batch(
        rng: np.random.Generator, running: dict[str, float], step: int
    ) -> tuple[Tensor, Graded]:
        shown = [documents.train_scene(rng) for _ in range(size.batch)]
        drawn = [_in_pixels(scene, rng, late=False) for scene in shown]
        logits, packed, _, _ = _predict(model, run, drawn, shown, worker.device, tower=False)
        return weighted_loss(logits, packed), grade(logits, packed, drawn)

    modules = nn.ModuleDict({"model": model})
    return Stage("align", ALIGN_SEED, size, groups, modules, batch, warmup=20)


def joint(size: Size, worker: Worker, out: Path) -> Stage:
    """Everything but the word embeddings."""
    model, places = assemble(out)
    model.load_state_dict(part("model.", weights(out, "align")))
    modules = nn.ModuleDict({"model": model, "places": places}).to(worker.device)
    language = model.model.language_model
    language.embed_tokens.requires_grad_(False)
    groups = [
        *decay_groups([places], PROJECTOR_RATE),
        *decay_groups([language, model.lm_head], LANGUAGE_RATE),
        *decay_groups([model.model.multi_modal_projector], PROJECTOR_RATE),
        *decay_groups([model.model.vision_tower], TOWER_RATE),
    ]
    texts = round(TEXT_SHARE * size.batch)
    run = compiled(language, size.compiled)

    def batch(
        rng: np.random.Generator, running: dict[str, float], step: int
    ) -> tuple[Tensor, Graded]:
        late = step >= STEADY * size.steps
        shown = [documents.train_scene(rng) for _ in range(size.batch - texts)]
        drawn = [_in_pixels(scene, rng, late) for scene in shown]
        read = [_text(rng) for _ in range(texts)]
        logits, packed, halfway, patches = _predict(
            model, run, [*drawn, *read], shown, worker.device, HALFWAY
        )
        graded = grade(logits, packed, [*drawn, *read], [""] * len(drawn) + ["text "] * len(read))
        loss = weighted_loss(logits, packed) + PLACE_WEIGHT * _place_loss(places, patches, shown)
        if halfway is not None and packed.mentions:
            missed, right = reading(places["named"], halfway, packed)
            loss, graded = loss + READER_WEIGHT * missed, {**graded, **right}
        return loss, graded

    def measure() -> dict[str, float]:
        return twin_accuracies(language, model.lm_head, worker, size.measure_on)

    made = Stage("joint", JOINT_SEED, size, groups, modules, batch, warmup=40, steady=STEADY)
    return replace(made, measure=measure)


def _in_pixels(scene: Scene, rng: np.random.Generator, late: bool) -> Document:
    favoured = LATE if late else documents.BINDING
    tasks = favoured if rng.random() < FAVOURED_SHARE else None
    document = fit(documents.scene_in_pixels(scene, rng, tasks), LONGEST)
    if not late:
        return document
    heavy = [replace(b, weight=LATE_WEIGHTS.get(b.task, 1.0)) for b in document.blocks]
    return replace(document, blocks=heavy)


def _text(rng: np.random.Generator) -> Document:
    at = rng.random()
    for kind, bound in zip(TEXTS, BOUNDS, strict=True):
        if at < bound:
            return fit(kind(rng), LONGEST)
    return fit(documents.scene_in_words(documents.train_scene(rng), rng), LONGEST)


def _predict(
    model: Any,
    run: Any,
    drawn: Sequence[Document],
    shown: Sequence[Scene],
    device: str,
    layer: int | None = None,
    tower: bool = True,
) -> tuple[Tensor, Packed, Tensor | None, Tensor]:
    """Logits for documents, the first of which have pictures; states inside; the patches."""
    packed = pack(drawn).to(device)
    with torch.autocast(device, torch.bfloat16):
        embedded = model.model.language_model.embed_tokens(packed.ids)
        with torch.set_grad_enabled(tower):
            pictures = pixels([scene.image() for scene in shown]).to(device)
            patches = patch_features(model.model.vision_tower, pictures)[:, 1:]
        features = model.model.multi_modal_projector(patches).to(embedded.dtype)
        at_image = (packed.ids == IMAGE)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(at_image, features)
        logits, halfway = predict_and_read(run, model.lm_head, embedded, packed, layer)
    return logits, packed, halfway, patches


def _place_loss(places: nn.ModuleDict, patches: Tensor, shown: Sequence[Scene]) -> Tensor:
    """How badly a linear reading of object patches tells their object's cell."""
    chosen, rows, columns = [], [], []
    for index, scene in enumerate(shown):
        for patch, label in enumerate(scene.labels().ravel().tolist()):
            if label >= 0:
                chosen.append(index * VISUAL_TOKENS + patch)
                rows.append(scene.objects[label].row)
                columns.append(scene.objects[label].column)
    seen = patches.flatten(0, 1)[chosen]
    entropy = nn.functional.cross_entropy
    row, column = (torch.tensor(cells, device=seen.device) for cells in (rows, columns))
    by_row = entropy(places["row"](seen).float(), row)
    return by_row + entropy(places["column"](seen).float(), column)


def part(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
