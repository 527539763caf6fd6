"""The demonstration: a report on the shipped model and scenes whose truth is known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.readouts.embed_lens import EmbedLens
from ...lens.scenes import BACKGROUND, SLIVER, Scene, scenes
from ..analysis import Result
from ..causal_evidence_of_markers import causal_evidence
from ..example import Example
from ..report_inputs import Material, Truth
from .not_done import not_done
from .page import Report
from .runs import run_all

PROMPT = "describe the image ."
_SEEDS_PER_RUN = 10_000  # no two runs with different seeds, and no two parts of one, share a scene


@dataclass(frozen=True)
class Sizes:
    """How much the demonstration looks at."""

    scenes: int
    calibration: int  # scenes on which markers are discovered
    texts: int  # scenes in words, to compare tokens with
    asked: int  # of the scenes, those that are asked about
    questions: int  # about each


FULL = Sizes(scenes=40, calibration=24, texts=64, asked=12, questions=2)
QUICK = Sizes(scenes=16, calibration=16, texts=32, asked=10, questions=2)


def demo(
    model: VisualLM, *, sizes: Sizes = FULL, seed: int = 0, progress: Progress = silent
) -> list[Result]:
    """Run every analysis that a report has by default on held-out scenes.

    Markers are discovered, without labels, on scenes of their own; the text bank describes yet
    other scenes.

    Args:
        model: The shipped model, or another that learnt the same scenes.
        sizes: How much is looked at.
        seed: Which scenes, and every other random choice.
        progress: Called after every step.

    Returns:
        token_map, lens_hits, class_agreement, sparsity, alignment, ablation, and whatever else is
        registered to be run by default.
    """
    return run_all(demo_material(model, sizes=sizes, seed=seed, progress=progress))


def demo_material(
    model: VisualLM, *, sizes: Sizes = FULL, seed: int = 0, progress: Progress = silent
) -> Material:
    """What the demonstration is run on: scenes, classes, questions and the truth about all.

    Args:
        model: As of `demo`, and so are the others.
        sizes: How much is looked at.
        seed: Which scenes, and every other random choice.
        progress: Called after every step.
    """
    start = seed * _SEEDS_PER_RUN
    shown = scenes(sizes.scenes, start=start)
    calibration = scenes(sizes.calibration, start=start + 1000)
    told = scenes(sizes.texts, start=start + 2000)
    progress("finding recurring tokens", 0, 1)
    markers = Markers.discover(model, [scene.image() for scene in calibration], seed=seed)
    batch = model.encode([scene.image() for scene in shown], [PROMPT] * len(shown))
    markers = causal_evidence(
        model, batch, markers, classes=("dead",), seed=seed, progress=progress
    )
    batch = batch.with_classes(markers.classify(model, batch))
    words = true_words(batch, shown)
    return Material(
        model,
        [batch],
        examples=[
            Example(scene.image(), question.text, question.answer, question.task)
            for scene in shown[: sizes.asked]
            for question in scene.questions(sizes.questions, seed=seed)
        ],
        texts=[scene.describe() for scene in told],
        pictured=[batch.subset(best_and_worst(model, batch, words))],
        pictured_by=f"Pictured are, of {sizes.scenes} scenes, the two in which the largest share "
        "of the patches that show an object has a word for it among the three nearest, and then "
        "the two in which the smallest has.",
        markers=markers,
        truth=Truth(words, true_content(batch, shown)),
        examples_at_once=sizes.asked * sizes.questions,
        seed=seed,
        progress=progress,
    )


def best_and_worst(
    model: VisualLM, batch: Batch, words: Sequence[Sequence[str] | None]
) -> list[int]:
    """The two samples with the best named objects, best first, and the two worst, worst last.

    By the share of a sample's tokens that show something of which one of the three nearest words
    is right; equal ones in the batch's order.

    Args:
        model: Reads the tokens.
        batch: Samples, some object in each.
        words: For each visual token the words that name what it shows, or None.
    """
    nearest = EmbedLens(model).read(model.entry(batch), k=3).words
    shown = np.array([true is not None for true in words])
    right = np.array(
        [bool(set(near) & set(true or ())) for near, true in zip(nearest, words, strict=True)]
    )
    of = batch.visual.sample
    shares = np.bincount(of[right], minlength=len(batch)) / np.bincount(of[shown])
    order = np.argsort(-shares, kind="stable").tolist()
    return [*order[:2], *order[-2:]]


def demo_report(results: Sequence[Result], sizes: Sizes = FULL) -> Report:
    """The results as a report."""
    asked = next(result.meta for result in results if "examples" in result.meta)
    return Report(
        title="What the visual tokens of a small model carry",
        data=(
            f"A small trained model that comes with embedlens, and {sizes.scenes} scenes it has "
            "never seen: one to four coloured shapes, letters and digits whose place is known to "
            f"the pixel. Classes were calibrated on {sizes.calibration} other scenes without "
            f"labels; {asked['examples']} questions about {asked['images']} scenes measure what "
            "parts of the model are worth."
        ),
        limitations=(
            "One small model, trained once, on drawn scenes of 64 × 64 pixels: how it does things "
            "need not be how large models do them.",
            "Intervals tell how results vary between images, not between training runs.",
            "How classes are found (directions that recur from image to image) is our recipe; the "
            "paper’s rule names vocabulary entries of one other checkpoint.",
            "Zeroing follows the paper’s released code, without its special rule for layer 0.",
            "Exact match is strict, and tasks have few questions each; the table has the "
            "log-probabilities too.",
            not_done(results),
        ),
        results=results,
    )


def true_words(batch: Batch, shown: Sequence[Scene]) -> list[tuple[str, ...] | None]:
    """For each visual token the colour and kind of the object it shows; None if it shows none."""
    words: list[tuple[str, ...] | None] = []
    for scene, label in _labels(batch, shown):
        words.append(scene.objects[label].words if label >= 0 else None)
    return words


def true_content(batch: Batch, shown: Sequence[Scene]) -> list[str]:
    """For each visual token whether it shows an object, a sliver of one, or the background."""
    names = {BACKGROUND: "background", SLIVER: "sliver of an object"}
    return [names.get(label, "object") for _, label in _labels(batch, shown)]


def _labels(batch: Batch, shown: Sequence[Scene]) -> list[tuple[Scene, int]]:
    grids = [scene.labels(batch.visual.grid(sample)[0]) for sample, scene in enumerate(shown)]
    place = zip(batch.visual.sample, batch.visual.row, batch.visual.col, strict=True)
    return [(shown[s], int(grids[s][row, col])) for s, row, col in place]
