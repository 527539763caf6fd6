"""A scene: a picture whose every patch and every answer is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import reduce
from numpy.typing import NDArray
from PIL import Image

from . import descriptions
from .drawing import backdrop, paint, pixel_coverage
from .objects import IMAGE_SIZE, MAX_OBJECTS, PATCH_SIZE, SceneObject, choose, sample_objects
from .questions import TASK_FREQUENCIES, Question, ask
from .streams import stream
from .vocabulary import BACKGROUNDS

BACKGROUND = -1
"""Label of a cell that no object touches."""
SLIVER = -2
"""Label of a cell that an object touches but does not fill enough to be seen there."""

_LEAST_COVERAGE = 0.15
_TRIES_PER_QUESTION = 40


@dataclass(frozen=True)
class Scene:
    """One to four objects on a background, with ground truth for every patch and question.

    The picture depends on these fields alone, so `dataclasses.replace(scene, background=...)`
    gives a counterfactual that differs in nothing else.

    Attributes:
        objects: in reading order.
        background: one of `BACKGROUNDS`.
        seed: of the random streams that the scene draws on.
        split: which of these streams, such as ``held-out``.
    """

    objects: tuple[SceneObject, ...]
    background: str
    seed: int
    split: str

    @classmethod
    def sample(cls, seed: int, *, split: str = "held-out", n_objects: int | None = None) -> "Scene":
        """The scene of a seed.

        Args:
            seed: any integer ≥ 0.
            split: "train" (what the shipped model saw) or "held-out"; they never share a stream.
            n_objects: 1 to 4; drawn from the seed by default. When the last object finds no
                room (rare) the scene has fewer.

        Raises:
            ValueError: unknown split, negative seed, or n_objects out of range.
        """
        rng = stream(split, "layout", seed)
        drawn = int(rng.integers(1, MAX_OBJECTS + 1))
        wanted = drawn if n_objects is None else n_objects
        if not 1 <= wanted <= MAX_OBJECTS:
            raise ValueError(f"n_objects must be 1 to {MAX_OBJECTS}, got {wanted}")
        background = BACKGROUNDS[0] if rng.random() < 0.4 else choose(rng, BACKGROUNDS[1:])
        return cls(sample_objects(rng, wanted), background, seed, split)

    def image(self) -> Image.Image:
        """The picture, RGB, 64 × 64 pixels."""
        empty = backdrop(self.background, stream(self.split, "backdrop", self.seed))
        return paint(empty, self.objects, stream(self.split, "tint", self.seed))

    def coverage(self, grid: int = IMAGE_SIZE // PATCH_SIZE) -> NDArray[np.float32]:
        """How much of each cell each object covers, 0 to 1: [object, row, col].

        Raises:
            ValueError: the grid does not divide the image.
        """
        if grid < 1 or IMAGE_SIZE % grid:
            raise ValueError(f"a grid of {grid} does not divide {IMAGE_SIZE} pixels")
        pixels = np.stack([pixel_coverage(item) for item in self.objects])
        cells: NDArray[np.float32] = reduce(
            pixels, "object (row y) (col x) -> object row col", "mean", row=grid, col=grid
        )
        return cells

    def labels(self, grid: int = IMAGE_SIZE // PATCH_SIZE) -> NDArray[np.int64]:
        """What each cell shows, [row, col]: the index of the object that covers most of it.

        `BACKGROUND` where no object reaches; `SLIVER` where the best one covers less than 15 %.
        """
        covered = self.coverage(grid)
        most = covered.max(0)
        thin = np.where(most > 0, SLIVER, BACKGROUND)
        return np.where(most >= _LEAST_COVERAGE, covered.argmax(0), thin)

    def questions(
        self, n: int = 8, *, tasks: Sequence[str] | None = None, seed: int = 0
    ) -> tuple[Question, ...]:
        """Up to `n` different questions, the same ones for the same seed.

        Fewer come back when the scene has no more to ask (one object has no relation).

        Args:
            n: how many.
            tasks: ask only these, all equally often; by default every task at its usual rate.
            seed: another seed, other questions about the same scene.

        Raises:
            ValueError: a task is unknown.
        """
        rng = stream(self.split, "questions", self.seed, seed)
        names = list(TASK_FREQUENCIES) if tasks is None else list(tasks)
        weights = np.array([1.0 if tasks else TASK_FREQUENCIES[name] for name in names])
        asked: dict[str, Question] = {}
        for choice in rng.choice(len(names), n * _TRIES_PER_QUESTION, p=weights / weights.sum()):
            if len(asked) == n:
                break
            question = ask(names[choice], self.objects, self.background, rng)
            if question is not None:
                asked.setdefault(question.text, question)
        return tuple(asked.values())

    def caption(self) -> str:
        """The canonical description, the answer to the caption task."""
        return descriptions.caption(self.objects, self.background)

    def describe(self, seed: int = 0) -> str:
        """The scene's text twin: a random wording that says all that the picture shows."""
        rng = stream(self.split, "description", self.seed, seed)
        return descriptions.describe(self.objects, self.background, rng)


def scenes(
    n: int, *, split: str = "held-out", start: int = 0, n_objects: int | None = None
) -> list[Scene]:
    """The scenes of the seeds `start` to `start + n - 1`.

    Example:
        >>> from embedlens.lens.scenes import scenes
        >>> [scene.objects[0].phrase for scene in scenes(2, n_objects=1)]
        ['orange letter L', 'blue digit 0']
    """
    seeds = range(start, start + n)
    return [Scene.sample(seed, split=split, n_objects=n_objects) for seed in seeds]
