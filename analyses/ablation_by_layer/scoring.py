"""Every example's answer scored under every condition, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from ...lens import Scores
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress
from ..example import Example
from .conditions import WRONG_IMAGE, Condition, wrong_images

DOING = "zeroing attention and FFN"


@dataclass(frozen=True, eq=False)
class Questions:
    """Examples with their images read.

    Attributes:
        examples: As they were given.
        pictures: The images of each.
        image_of: Which images an example has, as a number; equal images have equal numbers.
        wrong: For each example another one with other images, None where there is none.
    """

    examples: Sequence[Example]
    pictures: Sequence[tuple[Image.Image, ...]]
    image_of: Int[np.ndarray, " example"]
    wrong: Sequence[int | None]

    @classmethod
    def read(cls, examples: Sequence[Example], seed: int) -> Self:
        """Read the images, and draw wrong ones."""
        pictures = [example.read() for example in examples]
        keys = [tuple(image.tobytes() for image in row) for row in pictures]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        image_of = np.array([number[key] for key in keys], dtype=np.int64)
        wrong = wrong_images(image_of, [len(row) for row in pictures], seed)
        return cls(examples, pictures, image_of, wrong)

    @property
    def own_answers(self) -> bool:
        """Whether what the untouched model says counts as right."""
        return self.examples[0].answer is None


@dataclass(frozen=True, eq=False)
class Answered:
    """What each condition gave, NaN where it could not be run."""

    right: Float[np.ndarray, "condition example"]
    logprob: Float[np.ndarray, "condition example"]
    answers: list[str]


def score_all(
    model: VisualLM,
    questions: Questions,
    conditions: Sequence[Condition],
    *,
    tokens: str,
    markers: Markers | None,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress,
) -> Answered:
    """Score the answers under all conditions; equal runs are run once.

    Each batch is encoded once: all plans are scored on it, then its questions with wrong images.
    """
    plans = {c.same_run: c.plan(tokens) for c in conditions if c is not WRONG_IMAGE}
    row = {run: i for i, run in enumerate([*plans, WRONG_IMAGE.same_run])}
    right = np.full((len(row), len(questions.examples)), np.nan)
    logprob = right.copy()
    answers: list[str] = []

    def put(run: tuple[object, ...], part: Sequence[int], scores: Scores) -> None:
        right[row[run], part] = scores.greedy.double().cpu().numpy()
        logprob[row[run], part] = scores.logprob.double().cpu().numpy()

    def told(before: int) -> Progress:
        return lambda _, scored, __: progress(DOING, before + scored, total)

    parts = _parts(len(questions.examples), batch_size)
    end, total = not questions.own_answers, len(parts) * len(row)
    for before, part in zip(range(0, total, len(row)), parts, strict=True):
        batch = _encode(model, questions, part, part)
        if markers is not None:
            batch = batch.with_classes(markers.classify(model, batch))
        answers += _answers(model, questions, part, batch, max_new_tokens)
        given = [answers[i] for i in part]
        many = model.score_many(batch, given, list(plans.values()), end=end, progress=told(before))
        for run, scores in zip(plans, many, strict=True):
            put(run, part, scores)
        if matched := [i for i in part if questions.wrong[i] is not None]:
            batch = _encode(model, questions, matched, [questions.wrong[i] for i in matched])
            scores = model.score(batch, [answers[i] for i in matched], end=end)
            put(WRONG_IMAGE.same_run, matched, scores)
        progress(DOING, before + len(row), total)
    rows = [row[condition.same_run] for condition in conditions]
    return Answered(right[rows], logprob[rows], answers)


def _parts(n: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, n))) for start in range(0, n, size)]


def _encode(
    model: VisualLM, questions: Questions, asked: Sequence[int], shown: Sequence[int | None]
) -> Batch:
    """The prompts of some examples with the images of others, or of the same."""
    images = [list(questions.pictures[i]) for i in shown if i is not None]
    return model.encode(images, [questions.examples[i].prompt for i in asked])


def _answers(
    model: VisualLM, questions: Questions, part: Sequence[int], batch: Batch, max_new_tokens: int
) -> list[str]:
    """The answers to score: the given ones, or what the untouched model says."""
    if not questions.own_answers:
        return [questions.examples[i].answer or "" for i in part]
    said = model.generate(batch, max_new_tokens=max_new_tokens)
    if "" in said:
        prompt = questions.examples[part[said.index("")]].prompt
        raise InputError(
            f"the model answers nothing to {prompt!r}: ask another question or give the answer "
            "to score"
        )
    return said
