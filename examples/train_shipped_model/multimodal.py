"""Stages 3 to 5: the projector learns to speak to the language model, then all learn together.

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
from language import grade, predict, weighted_loss
from models import VISION_WIDTH, multimodal_model, patch_features, seeded
from packing import Document, pack
from tokens import IMAGE, VISUAL_TOKENS
from torch import Tensor, nn
from training import Graded, Size, Stage, decay_groups, weights
from vision import pixels
from workers import Worker

from embedlens.lens.scenes import COLUMNS, ROWS, Scene

ALIGN_SEED, ALIGN_RATE = 3, 2e-3
JOINT_SEED, POLISH_SEED = 4, 5
POLISH_RATE = 0.35  # of the joint stage's rates
STILL_WEAK = ("background", "count", "relation", "caption")
JOINT_STEADY = 10 / 13  # of 2600 steps, the rate falls over the last 600
LANGUAGE_RATE, PROJECTOR_RATE, TOWER_RATE = 8e-4, 1e-3, 3e-4
TEXT_SHARE, FAVOURED_SHARE = 0.15, 0.4
TEXTS = (documents.lookups, documents.facts, documents.comparisons, documents.cells)
PLACE_WEIGHT = 0.3


def assemble(out: Path) -> tuple[Any, nn.ModuleDict]:
    """The multimodal model from the finished language and vision stages, and place readers.

    The readers tell the row and the column of an object from one of its patches. They are
    needed in training only.
    """
    with seeded(ALIGN_SEED):
        model: Any = multimodal_model()
        places = nn.ModuleDict(
            {
                "row": nn.Linear(VISION_WIDTH, len(ROWS)),
                "column": nn.Linear(VISION_WIDTH, len(COLUMNS)),
            }
        )
    language = weights(out, "language")
    model.model.language_model.load_state_dict(part("language.model.", language))
    model.lm_head.load_state_dict(part("language.lm_head.", language))
    model.model.vision_tower.load_state_dict(part("tower.", weights(out, "vision")))
    return model, places


def align(size: Size, worker: Worker, out: Path) -> Stage:
    """The projector alone."""
    model, _ = assemble(out)
    model.to(worker.device)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    groups = decay_groups([model.model.multi_modal_projector], ALIGN_RATE)

    def batch(
        rng: np.random.Generator, running: dict[str, float], step: int
    ) -> tuple[Tensor, Graded]:
        return _batch(model, rng, size.batch, worker.device)

    modules = nn.ModuleDict({"model": model})
    return Stage("align", ALIGN_SEED, size, groups, modules, batch, warmup=20)


def joint(size: Size, worker: Worker, out: Path) -> Stage:
    """Everything but the word embeddings."""
    model, places = assemble(out)
    model.load_state_dict(part("model.", weights(out, "align")))
    stage = _together("joint", JOINT_SEED, model, places, size, worker, documents.BINDING)
    return replace(stage, warmup=40, steady=JOINT_STEADY)


def polish(size: Size, worker: Worker, out: Path) -> Stage:
    """The joint stage goes on at lower, falling rates and asks more of what is still weak."""
    model, places = assemble(out)
    trained = weights(out, "joint")
    model.load_state_dict(part("model.", trained))
    places.load_state_dict(part("places.", trained))
    stage = _together("polish", POLISH_SEED, model, places, size, worker, STILL_WEAK)
    gentle = [(parameters, POLISH_RATE * rate, decay) for parameters, rate, decay in stage.groups]
    return replace(stage, groups=gentle, warmup=20, steady=0.0)


def _together(
    name: str,
    seed: int,
    model: Any,
    places: nn.ModuleDict,
    size: Size,
    worker: Worker,
    favoured: tuple[str, ...],
) -> Stage:
    """A stage of the whole model but its word embeddings."""
    modules = nn.ModuleDict({"model": model, "places": places}).to(worker.device)
    model.model.language_model.embed_tokens.requires_grad_(False)
    groups = [
        *decay_groups([places], PROJECTOR_RATE),
        *decay_groups([model.model.language_model, model.lm_head], LANGUAGE_RATE),
        *decay_groups([model.model.multi_modal_projector], PROJECTOR_RATE),
        *decay_groups([model.model.vision_tower], TOWER_RATE),
    ]

    def batch(
        rng: np.random.Generator, running: dict[str, float], step: int
    ) -> tuple[Tensor, Graded]:
        return _batch(model, rng, size.batch, worker.device, TEXT_SHARE, places, favoured)

    return Stage(name, seed, size, groups, modules, batch)


def _batch(
    model: Any,
    rng: np.random.Generator,
    size: int,
    device: str,
    text_share: float = 0.0,
    places: nn.ModuleDict | None = None,
    favoured: tuple[str, ...] = documents.BINDING,
) -> tuple[Tensor, Graded]:
    """One step's documents; with `places` the tower learns too, and where each object is."""
    drawn: list[Document] = []
    shown: list[Scene] = []
    for _ in range(size):
        if rng.random() < text_share:
            drawn.append(TEXTS[int(rng.integers(len(TEXTS)))](rng))
            continue
        scene = documents.train_scene(rng)
        tasks = favoured if rng.random() < FAVOURED_SHARE else None
        drawn.append(documents.scene_in_pixels(scene, rng, tasks))
        shown.append(scene)
    packed = pack(drawn).to(device)
    with torch.autocast(device, torch.bfloat16):
        embedded = model.model.language_model.embed_tokens(packed.ids)
        if shown:
            with torch.set_grad_enabled(places is not None):
                pictures = pixels([scene.image() for scene in shown]).to(device)
                patches = patch_features(model.model.vision_tower, pictures)[:, 1:]
            features = model.model.multi_modal_projector(patches).to(embedded.dtype)
            at_image = (packed.ids == IMAGE)[..., None].expand_as(embedded)
            embedded = embedded.masked_scatter(at_image, features)
        logits = predict(model.model.language_model, model.lm_head, embedded, packed)
        loss = weighted_loss(logits, packed)
        if places is not None and shown:
            loss = loss + PLACE_WEIGHT * _place_loss(places, patches, shown)
    return loss, grade(logits, packed, drawn)


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
