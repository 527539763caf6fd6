"""What a study will take, before it runs: units, time, FLOPs and disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...lens.errors import EmbedlensError
from ...lens.progress import Progress, silent
from ..analysis import find
from ..extraction.write_states import ExtractionForecast, forecast_extraction
from ..numbers_in_words import counted
from ..report.expected_time import FACTOR, expected_time
from ..sizes import duration, size
from .driver import Task
from .measures import Kind
from .study_analyses import material_of
from .study_states import StudyStates
from .units import Unit


@dataclass(frozen=True)
class Forecast:
    """What a study will take.

    Attributes:
        units: Units by what is observed.
        models, items, conditions: How many of each; conditions of all models together.
        seconds: Time, from one unit of each model and kind; of all units, whatever is done.
        flops: Of the decoders' layers over the prompts, written tokens left out; None where a
            plan's cost is not known.
        bytes: Size of the stored units.
        analyses: How many there are, of all models together.
        analyses_seconds: About how long they take, as ``embedlens analyze`` says beforehand.
        states: What states take, of all models and conditions together, each as on the untouched
            model; None where none are kept.
    """

    units: dict[str, int]
    models: int
    items: int
    conditions: int
    seconds: float
    flops: float | None
    bytes: int
    analyses: int = 0
    analyses_seconds: float = 0.0
    states: ExtractionForecast | None = None

    def lines(self) -> Iterator[str]:
        """What it says, line by line."""
        said = ", ".join(f"{n} of {kind}" for kind, n in self.units.items())
        yield (
            f"{sum(self.units.values())} units ({said}): {self.models} model"
            f"{'s' * (self.models > 1)}, {self.items} items, {self.conditions} conditions"
        )
        yield f"about {duration(self.seconds)} on this machine, from one unit of each kind"
        yield (
            "FLOPs not known: a plan's cost cannot be counted on this model"
            if self.flops is None
            else f"{self.flops:.3g} FLOPs in the decoders' layers, over the prompts"
        )
        yield f"about {size(self.bytes)} on disk"
        if (kept := self.states) is not None:
            yield (
                f"states on top: {counted(kept.blocks, 'block')}, about {kept.tokens} tokens, "
                f"about {duration(kept.seconds)} and {kept.bytes} bytes ({size(kept.bytes)})"
            )
        if self.analyses:
            come = "1 analysis comes" if self.analyses == 1 else f"{self.analyses} analyses come"
            yield (
                f"{come} on top: about {duration(self.analyses_seconds)} (a third to "
                f"{FACTOR} times that), from a few passes"
            )


def forecast(task: Task, progress: Progress = silent) -> Forecast:
    """Time one unit of each model and kind of observation; nothing is stored.

    Args:
        task: From `Study.task`.
        progress: Called as units are timed.
    """
    counts: Counter[tuple[int, Kind]] = Counter()
    work: Counter[tuple[int, Kind]] = Counter()
    first: dict[tuple[int, Kind], Unit] = {}
    for unit in task.units:
        key = unit.cut.model, unit.cut.kind
        counts[key] += 1
        work[key] += _work(unit)
        first.setdefault(key, unit)
    seconds, size = 0.0, 0.0
    for done, (key, unit) in enumerate(first.items()):
        progress("timing units", done, len(first))
        stored = task.compute(unit)
        times = work[key] / _work(unit)
        seconds += stored.seconds * times
        size += len(stored.content or "") * times
    kinds: dict[str, int] = {}
    for (_, kind), number in counts.items():
        kinds[kind] = kinds.get(kind, 0) + number
    return Forecast(
        kinds,
        len(task.units.models),
        len(task.units.items),
        sum(len(part.conditions) for part in task.units.models),
        seconds,
        _flops(task),
        int(size),
        len(task.analyses),
        _seconds_of_analyses(task, progress),
        None if task.states is None else _states(task, task.states, progress),
    )


def _seconds_of_analyses(task: Task, progress: Progress) -> float:
    total = 0.0
    for done, unit in enumerate(task.analyses):
        progress("timing passes of analyses", done, len(task.analyses))
        observer, few = task.models.observer(unit.model), task.items[: unit.items]
        material = material_of(observer, few, task.models.study, batches=1)
        total += expected_time(material, [find(unit.name)]).seconds
    return total


def _states(task: Task, states: StudyStates, progress: Progress) -> ExtractionForecast:
    """One block on each untouched model, times what there is to do."""
    total = ExtractionForecast(len(states), 0, 0.0, 0)
    for number, listed in enumerate(states.conditions.values()):
        progress("timing states", number, len(states.conditions))
        clean = next(place for place in states.places if place.model == number)
        one = forecast_extraction(states.extraction(task.models.observer(number), clean))
        total = replace(
            total,
            tokens=total.tokens + one.tokens * len(listed),
            seconds=total.seconds + one.seconds * len(listed),
            bytes=total.bytes + one.bytes * len(listed),
        )
    return total


def _work(unit: Unit) -> int:
    return len(unit.cut.items) * len(unit.cut.conditions)


def _flops(task: Task) -> float | None:
    """Per condition the clean pass less what is really skipped, and what is spent beside it."""
    total, items = 0.0, task.items
    block = items[: task.units.batch_size]
    for number, part in enumerate(task.units.models):
        observer = task.models.observer(number)
        for condition in part.conditions:
            try:
                shown = [item.shown_with(condition.wrong_image) for item in block]
                spent = observer.flops(shown, condition.plan)
            except EmbedlensError:
                return None
            total += spent * len(items) / len(block)
    choices = max((len(item.choices) for item in items), default=0)
    passes = sum(choices if kind == "choices" else 1 for kind in task.units.measures)
    kept = 0 if task.states is None else len(task.states.items) / len(items)
    return total * (passes + kept)
