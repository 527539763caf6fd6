"""How long analyses will take: measured passes times the number of passes that each declares."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...lens.inputs.batch import Batch
from ...lens.model import VisualLM
from .. import timed_passes
from ..analysis import Analysis
from ..extent import Extent
from ..numbers_in_words import counted
from ..report_inputs import Material

FACTOR = 3
"""How far the estimate may be off, on either side."""

_MEASURED = 3  # passes
_EACH = 0.5  # seconds of an analysis for what is no pass: statistics, its figure


@dataclass(frozen=True)
class ExpectedTime:
    """What some analyses will take.

    Attributes:
        analyses: How many.
        passes: Through the whole decoder, of one prompt.
        each: Seconds of such a pass.
    """

    analyses: int
    passes: float
    each: float

    @property
    def seconds(self) -> float:
        """In all."""
        return self.passes * self.each + self.analyses * _EACH

    def __str__(self) -> str:
        return (
            f"about {_told(self.seconds)} for {_counted(self.analyses)} (a third to "
            f"{FACTOR} times that): {self.passes:.0f} passes of {1000 * self.each:.0f} ms"
        )


def expected_time(material: Material, analyses: Sequence[Analysis]) -> ExpectedTime:
    """What the analyses will take on this material; runs a few passes to see how long one takes."""
    extent = extent_of(material)
    passes = sum(analysis.passes(extent) for analysis in analyses)
    return ExpectedTime(
        len(analyses), passes, seconds_of_a_pass(material.model, material.batches[0])
    )


def extent_of(material: Material) -> Extent:
    """How much the analyses of a report look at."""
    first, classes = material.batches[0], 0
    if material.markers is not None:
        known = first.classes or material.markers.classify(material.model, first)
        classes = len(set(known.labels.tolist()))
    tokenizer = material.model.tokenizer
    words = sum(len(tokenizer(text)["input_ids"]) for text in material.texts)
    return Extent(
        images=len(material.examples),
        at_once=material.examples_at_once,
        layers=material.model.n_layers,
        classes=classes,
        text=words / first.length,
    )


def seconds_of_a_pass(model: VisualLM, batch: Batch) -> float:
    """The least time of some passes over a batch, after one that is not counted, by prompt."""
    model.run(batch, logits="last")
    times = []
    for _ in range(_MEASURED):
        started = timed_passes.now(model)
        model.run(batch, logits="last")
        times.append(timed_passes.now(model) - started)
    return min(times) / len(batch)


def _counted(analyses: int) -> str:
    return counted(analyses, "analysis") if analyses == 1 else f"{analyses} analyses"


def _told(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds".replace("1 seconds", "1 second")
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
