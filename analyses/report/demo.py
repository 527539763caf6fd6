"""The demonstration: every analysis on the shipped model and scenes whose truth is known."""

from collections.abc import Sequence

from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.scenes import BACKGROUND, SLIVER, Scene, scenes
from ..analysis import Result
from ..causal_evidence_of_markers import causal_evidence
from ..example import Example
from ..report_inputs import Material, Truth
from .page import Report
from .runs import run_all

PROMPT = "describe the image ."
_SHOWN, _SCENES, _CALIBRATION, _TEXTS, _ASKED, _QUESTIONS = 4, 32, 24, 64, 12, 2
_SEEDS_PER_RUN = 10_000  # no two runs with different seeds, and no two parts of one, share a scene


def demo(model: VisualLM, *, seed: int = 0, progress: Progress = silent) -> list[Result]:
    """Run every analysis on held-out scenes.

    Markers are discovered, without labels, on scenes of their own; the text bank describes yet
    other scenes.

    Args:
        model: The shipped model, or another that learnt the same scenes.
        seed: Which scenes, and every other random choice.
        progress: Called after every step.

    Returns:
        token_map, lens_hits, class_agreement, sparsity, alignment, ablation, and whatever else is
        registered.
    """
    start = seed * _SEEDS_PER_RUN
    shown = scenes(_SCENES, start=start)
    calibration = scenes(_CALIBRATION, start=start + 1000)
    told = scenes(_TEXTS, start=start + 2000)
    progress("finding recurring tokens", 0, 1)
    markers = Markers.discover(model, [scene.image() for scene in calibration], seed=seed)
    batch = model.encode([scene.image() for scene in shown], [PROMPT] * len(shown))
    markers = causal_evidence(
        model, batch, markers, classes=("dead",), seed=seed, progress=progress
    )
    batch = batch.with_classes(markers.classify(model, batch))
    material = Material(
        model,
        [batch],
        examples=[
            Example(scene.image(), question.text, question.answer, question.task)
            for scene in shown[:_ASKED]
            for question in scene.questions(_QUESTIONS, seed=seed)
        ],
        texts=[scene.describe() for scene in told],
        pictured=[batch.subset(range(_SHOWN))],
        markers=markers,
        truth=Truth(true_words(batch, shown), true_content(batch, shown)),
        examples_at_once=_ASKED * _QUESTIONS,
        seed=seed,
        progress=progress,
    )
    return run_all(material)


def demo_report(results: Sequence[Result]) -> Report:
    """The results as a report."""
    asked = next(result.meta for result in results if "examples" in result.meta)
    return Report(
        title=f"What the visual tokens of {asked['model']} carry",
        data=(
            f"A small trained model that comes with embedlens, and {_SCENES} scenes it has never "
            "seen: one to four coloured shapes, letters and digits whose place is known to the "
            f"pixel. Classes were calibrated on {_CALIBRATION} other scenes without labels; "
            f"{asked['examples']} questions about {asked['images']} scenes measure what parts of "
            "the model are worth."
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
            "Not done here: pruning tokens, injecting them at middle layers, scaling their norms, "
            "attention shares, and the paper’s benchmarks.",
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
