"""Stage 2: the vision tower, on pictures, their descriptions, and words for object patches.

Background patches have no target of their own: what becomes of them is left to the model.
"""

from collections.abc import Sequence
from typing import Any

import documents
import numpy as np
import torch
from models import VISION_WIDTH, patch_features, pooled, seeded, vision_model
from PIL import Image
from tokens import VISUAL_TOKENS
from torch import Tensor, nn
from training import Graded, Size, Stage, decay_groups
from workers import Worker

from embedlens.lens.scenes import BACKGROUNDS, COLORS, COLUMNS, KINDS, ROWS, SHAPES, Scene

SEED, RATE = 2, 3e-3
MOST_OBJECTS = 4
NO_OBJECT = -100
FIRST_SCALE, LARGEST_SCALE = 2.3, 100  # of the similarities: log, and after exp
COLOR_NAMES = tuple(COLORS)


class PhraseEncoder(nn.Module):
    """A scene's objects as phrases (colour, kind, row, column), summed up with its background."""

    def __init__(self, width: int = VISION_WIDTH) -> None:
        super().__init__()
        sizes = len(COLOR_NAMES), len(KINDS), len(ROWS), len(COLUMNS)
        self.words = nn.ModuleList([nn.Embedding(size, width) for size in sizes])
        self.background = nn.Embedding(len(BACKGROUNDS), width)
        self.phrase = _two_layers(width)
        self.scene = nn.Sequential(nn.LayerNorm(width), *_two_layers(width))

    def forward(self, phrases: Tensor, present: Tensor, background: Tensor) -> Tensor:
        words = torch.stack([embed(phrases[..., i]) for i, embed in enumerate(self.words)])
        told = (self.phrase(words.sum(0)) * present[..., None]).sum(1)
        scene: Tensor = self.scene(told + self.background(background))
        return scene


def _two_layers(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """`[image, 3, height, width]`, in -1 to 1, as the processor makes them."""
    array = np.stack([np.asarray(image) for image in images])
    return (torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def in_numbers(drawn: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Phrases `[scene, object, word]`, which objects there are, and backgrounds."""
    phrases = torch.zeros(len(drawn), MOST_OBJECTS, 4, dtype=torch.long)
    present = torch.zeros(len(drawn), MOST_OBJECTS)
    for i, scene in enumerate(drawn):
        for j, item in enumerate(scene.objects):
            color, kind = COLOR_NAMES.index(item.color), KINDS.index(item.kind)
            phrases[i, j] = torch.tensor([color, kind, item.row, item.column])
            present[i, j] = 1
    return phrases, present, torch.tensor([BACKGROUNDS.index(s.background) for s in drawn])


def patch_words(drawn: Sequence[Scene], phrases: Tensor) -> tuple[Tensor, Tensor]:
    """Colour and kind of the object on each patch, `[scene, patch]`; NO_OBJECT elsewhere."""
    color, kind = (torch.full((len(drawn), VISUAL_TOKENS), NO_OBJECT) for _ in range(2))
    for i, scene in enumerate(drawn):
        labels = torch.from_numpy(scene.labels().ravel())
        for j in range(len(scene.objects)):
            color[i, labels == j], kind[i, labels == j] = phrases[i, j, 0], phrases[i, j, 1]
    return color, kind


def stage(size: Size, worker: Worker) -> Stage:
    """The stage, with a fresh tower under `modules["tower"]`."""
    with seeded(SEED):
        modules = nn.ModuleDict(
            {
                "tower": vision_model(),
                "phrases": PhraseEncoder(),
                "picture": nn.Linear(VISION_WIDTH, VISION_WIDTH),
                "color": nn.Linear(VISION_WIDTH, len(COLOR_NAMES)),
                "kind": nn.Linear(VISION_WIDTH, len(KINDS)),
                "scale": nn.ParameterDict({"log": nn.Parameter(torch.tensor(FIRST_SCALE))}),
            }
        )
    modules.to(worker.device)
    scale: Any = modules["scale"]

    def batch(
        rng: np.random.Generator, running: dict[str, float], step: int
    ) -> tuple[Tensor, Graded]:
        drawn = [documents.train_scene(rng) for _ in range(size.batch)]
        numbers = in_numbers(drawn)
        color, kind = patch_words(drawn, numbers[0])
        pictures = pixels([scene.image() for scene in drawn]).to(worker.device)
        with torch.autocast(worker.device, torch.bfloat16):
            states = patch_features(modules["tower"], pictures)
            seen = modules["picture"](pooled(modules["tower"], states))
            told = modules["phrases"](*(tensor.to(worker.device) for tensor in numbers))
            patches = states[:, 1:][(color >= 0).to(worker.device)]
            color_logits, kind_logits = modules["color"](patches), modules["kind"](patches)
        contrast, graded = _contrast(seen.float(), told.float(), scale["log"])
        color, kind = (words[words >= 0].to(worker.device) for words in (color, kind))
        entropy = nn.functional.cross_entropy
        words = entropy(color_logits.float(), color) + entropy(kind_logits.float(), kind)
        return contrast + words, {**graded, **_words_right(color_logits, color, kind_logits, kind)}

    # A tower from scratch learns glyphs several times faster with Muon on its square matrices.
    (matrices, rate, decay), rest = decay_groups([modules], RATE)
    square = [parameter for parameter in matrices if parameter.ndim == 2]
    other = [parameter for parameter in matrices if parameter.ndim != 2]
    groups = [(other, rate, decay), rest]
    return Stage("vision", SEED, size, groups, modules, batch, (square, RATE), warmup=100)


def _contrast(seen: Tensor, told: Tensor, scale: Tensor) -> tuple[Tensor, Graded]:
    """CLIP's loss: each picture must find its own scene among the batch's, and vice versa."""
    normalize = nn.functional.normalize
    similar = normalize(seen, dim=-1) @ normalize(told, dim=-1).T
    similar = similar * scale.exp().clamp(max=LARGEST_SCALE)
    own = torch.arange(len(seen), device=seen.device)
    entropy = nn.functional.cross_entropy
    loss = (entropy(similar, own) + entropy(similar.T, own)) / 2
    return loss, {"retrieval": [float((similar.argmax(1) == own).float().mean())]}


def _words_right(color_logits: Tensor, color: Tensor, kind_logits: Tensor, kind: Tensor) -> Graded:
    kinds_right = (kind_logits.argmax(-1) == kind).float()
    glyph = kind >= len(SHAPES)
    parts = {
        "patch color": (color_logits.argmax(-1) == color).float(),
        "patch shape": kinds_right[~glyph],
        "patch glyph": kinds_right[glyph],
    }
    return {name: [float(right.mean())] for name, right in parts.items() if len(right)}
