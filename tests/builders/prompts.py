"""Batches of the tiny model: some prompts with their images, and some tokens given a class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import tiny
from embedlens import Batch, TokenClasses, VisualLM

BATCHES = {
    "start": (["start"], [[0]]),
    "middle": (["middle"], [[0]]),
    "end": (["end"], [[1]]),
    "two-images": (["two"], [[0, 1]]),
    "ragged": (["middle", "two", "short", "end"], [[0], [1, 2], [3], [4]]),
}


def encode(model: VisualLM, name: str) -> Batch:
    prompts, seeds = BATCHES[name]
    images = [[tiny.image(seed) for seed in row] for row in seeds]
    return model.encode(images, [tiny.PROMPTS[prompt] for prompt in prompts])


def singles(model: VisualLM, name: str = "ragged") -> list[Batch]:
    prompts, seeds = BATCHES[name]
    return [
        model.encode([[tiny.image(seed) for seed in row]], [tiny.PROMPTS[prompt]])
        for prompt, row in zip(prompts, seeds, strict=True)
    ]


def marked(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with some visual tokens called dead, and where those are, ``[sample, token]``.

    Every other sample loses more, and none its last token.
    """
    share = np.where(batch.visual.sample % 2, 0.6, 0.35)
    dead = np.random.default_rng(0).random(len(batch.visual)) < share
    dead &= batch.visual.position < batch.length - 1
    where = torch.zeros(len(batch), batch.length, dtype=torch.bool)
    where[batch.visual.sample[dead], batch.visual.position[dead]] = True
    return _dead(batch, dead), where


def called_dead(single: Batch, where: Tensor) -> Batch:
    """A prompt alone, with the tokens called dead that are in its row of a padded batch."""
    return _dead(single, where[-single.length :][single.visual.position.copy()].numpy())


def _dead(batch: Batch, dead: np.ndarray) -> Batch:
    none = np.zeros(len(dead), bool)
    return batch.with_classes(TokenClasses({"vit-sink": none, "llm-sink": none, "dead": dead}))


def tiny_batch(model: VisualLM, name: str = "ragged") -> Batch:
    if name == "one":
        return labelled(model.encode([tiny.image(0)], [tiny.PROMPTS["middle"]]))
    prompts = [tiny.PROMPTS[p] for p in ("middle", "short", "end")]
    return labelled(model.encode([tiny.image(i) for i in range(3)], prompts))


def labelled(batch: Batch) -> Batch:
    rng = np.random.default_rng(3)
    masks = {kind: rng.random(len(batch.visual)) < 0.3 for kind in ("vit-sink", "dead")}
    # Every class has a member, and alive ones are left.
    masks["vit-sink"][:2], masks["dead"][:2] = (True, False), (False, True)
    masks["vit-sink"][2] = masks["dead"][2] = False
    masks["llm-sink"] = np.zeros(len(batch.visual), bool)
    return batch.with_classes(TokenClasses(masks))


def visual_of(batch: Batch) -> Tensor:
    where = torch.zeros(batch.inputs["input_ids"].shape, dtype=torch.bool)
    where[batch.visual.sample.copy(), batch.visual.position.copy()] = True
    return where


def label_of(batch: Batch) -> Tensor:
    assert batch.classes is not None
    label = torch.full(batch.inputs["input_ids"].shape, -1)
    sink = batch.classes.mask("sink")
    own = np.where(sink, 0, np.where(batch.classes.mask("dead"), 1, 2))
    label[batch.visual.sample.copy(), batch.visual.position.copy()] = torch.from_numpy(own)
    return label


def text_of(batch: Batch) -> Tensor:
    return batch.inputs["attention_mask"].bool() & ~visual_of(batch)
