"""Computing what a study lacks: which units, by which engine, into which store."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ...lens.progress import Progress
from ..analysis import Result
from ..extraction.extraction import Failure
from .condition_grid import StudyCondition
from .items import Item
from .opened_models import OpenedModels, model_identity
from .study_analyses import Add as AddAnalysis
from .study_analyses import AnalysisUnit, KeptAnalyses, analyse
from .study_folder import ANALYSES, StudyFolder
from .study_states import StatesUnit, StudyStates
from .unit_store import DoneUnits, StoredUnit, UnitStore
from .units import Unit, Units

Add = Callable[[StoredUnit], None]


@dataclass(frozen=True, eq=False)
class Task:
    """A study that is ready to be computed.

    Attributes:
        units: What there is to compute.
        models: On what.
        identity: What the study is, in plain values: its units are continued for the same only.
        analyses: What there is to analyse.
        states: What states are kept; None for none.
    """

    units: Units
    models: OpenedModels
    identity: dict[str, Any]
    analyses: tuple[AnalysisUnit, ...] = ()
    states: StudyStates | None = None

    @property
    def items(self) -> list[Item]:
        """What is asked."""
        return list(self.units.items)

    def parts(self, unit: Unit) -> tuple[list[Item], list[StudyCondition]]:
        """The items and the conditions of a unit."""
        conditions = self.units.models[unit.cut.model].conditions
        return (
            [self.units.items[i] for i in unit.cut.items],
            [conditions[i] for i in unit.cut.conditions],
        )

    def compute(self, unit: Unit) -> StoredUnit:
        """A unit, as it goes into the store."""
        measures = self.units.measures[unit.cut.kind]
        observer = self.models.observer(unit.cut.model)
        return observer.compute(unit, *self.parts(unit), measures)

    def analyse(self, unit: AnalysisUnit) -> Result | Exception:
        """The result of an analysis, or what went wrong."""
        observer = self.models.observer(unit.model)
        return analyse(observer, unit, self.models.study, self.items)

    def keep(self, unit: StatesUnit) -> list[Failure]:
        """Write a block of states; what of it could not be computed."""
        assert self.states is not None
        return self.states.keep(self.models.observer(unit.place.model), unit)


@runtime_checkable
class StudyEngine(Protocol):
    """Where units are computed."""

    def identify(self, models: OpenedModels, number: int) -> dict[str, Any]:
        """What tells a model from any other, where it is computed on."""

    def compute(self, task: Task, units: Iterable[Unit], add: Add) -> None:
        """Compute units, in any order, and hand each over when it is done."""

    def analyse(self, task: Task, units: Sequence[AnalysisUnit], add: AddAnalysis) -> None:
        """Run analyses, in any order, and hand each over when it is done."""

    def close(self) -> None:
        """Let go of what is held."""


@runtime_checkable
class StatesEngine(StudyEngine, Protocol):
    """Where states are written too."""

    def keep(self, task: Task, units: Iterable[StatesUnit], add: Callable[[], None]) -> None:
        """Write blocks of states, and say so of each when it is on disk."""


class SerialEngine:
    """One unit after the other, in this process."""

    def identify(self, models: OpenedModels, number: int) -> dict[str, Any]:
        """See :class:`StudyEngine`."""
        return model_identity(models.observer(number).model)

    def close(self) -> None:
        """Nothing is held."""

    def compute(self, task: Task, units: Iterable[Unit], add: Add) -> None:
        """See :class:`StudyEngine`."""
        for unit in units:
            add(task.compute(unit))

    def analyse(self, task: Task, units: Sequence[AnalysisUnit], add: AddAnalysis) -> None:
        """See :class:`StudyEngine`."""
        for unit in units:
            add(unit, task.analyse(unit))

    def keep(self, task: Task, units: Iterable[StatesUnit], add: Callable[[], None]) -> None:
        """See :class:`StatesEngine`."""
        for unit in units:
            task.keep(unit)
            add()


def drive(
    task: Task,
    text: str,
    folder: StudyFolder,
    shard: tuple[int, int],
    engine: StudyEngine,
    command: str,
    progress: Progress,
) -> None:
    """Compute the units of a shard that no file in the folder holds.

    Units that failed are tried again. ``text`` is the study's file.
    """
    file = folder.units_file(*shard)
    with UnitStore(file, task.identity) as store:
        folder.write(text, task.items)
        known = done_units(folder, task)
        total = left = 0
        for unit in task.units.shard(*shard):
            total += 1
            left += not known.has(unit.place, unit.key)
        kept = KeptAnalyses(folder.path / ANALYSES)
        mine = task.analyses[shard[0] - 1 :: shard[1]]
        lacking = [unit for unit in mine if not kept.has(unit)]
        stored = total - left
        blocks = 0 if task.states is None else sum(1 for _ in task.states.lacking(*shard))
        todo = left + len(lacking) + blocks
        store.begin_session(_now(), command or _command(), json.dumps(this_machine()), todo)

        def add(unit: StoredUnit) -> None:
            nonlocal stored
            store.add(unit)
            stored += 1
            progress("computing units", stored, total)

        progress("computing units", stored, total)
        units = task.units.shard(*shard)
        engine.compute(task, (u for u in units if not known.has(u.place, u.key)), add)
        analysed = 0

        def keep(unit: AnalysisUnit, found: Result | Exception) -> None:
            nonlocal analysed
            kept.add(unit, found)
            analysed += 1
            progress("running analyses", analysed, len(lacking))

        engine.analyse(task, lacking, keep)
        if task.states is None:
            return
        kept_blocks = 0

        def count() -> None:
            nonlocal kept_blocks
            kept_blocks += 1
            progress("keeping states", kept_blocks, blocks)

        # Nothing else was handed a task with states: see `Study.task`.
        assert isinstance(engine, StatesEngine)
        engine.keep(task, task.states.lacking(*shard), count)


def done_units(folder: StudyFolder, task: Task) -> DoneUnits:
    """The units that are done, in whatever file of the folder."""
    done = DoneUnits(len(task.units))
    for store in folder.open_stores(task.identity):
        with store:
            store.note_done(done)
    return done


def this_machine() -> dict[str, Any]:
    """Where units are computed, for the report."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command() -> str:
    name = Path(sys.argv[0]).name
    program = ["python", "-m", "embedlens"] if name == "__main__.py" else [name]
    return shlex.join([*program, *sys.argv[1:]])
