"""A study: conditions × data × measures, declared in one file, computed unit by unit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...lens.errors import InputError
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ..analysis import Analysis
from ..provenance import machine
from .condition_grid import PlanText, conditions_of
from .driver import SerialEngine, StatesEngine, StudyEngine, Task, drive
from .items import Item, declared_items
from .measures import KINDS, AnswerMeasure, measure_of
from .opened_models import OpenedModels, markers_identity
from .study_analyses import analysis_of, analysis_units, is_analysis, source_version
from .study_file import STATES, StatesSpec, StudyFile, read_study
from .study_folder import IMAGES, StudyFolder
from .study_result import StudyResult
from .study_states import StudyStates, check_states, states_of
from .units import ModelPart, Units
from .wrong_images import with_wrong_images

Shard = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Study:
    """A declared study: `Study.from_yaml(Path("study.yaml")).run("out").summary`.

    Attributes:
        file: What it says.
        text: How it says it.
        folder: What names of files in it are relative to.
        plans: Its plans as declared, those in files read.
    """

    file: StudyFile
    text: str
    folder: Path
    plans: tuple[PlanText, ...]

    @classmethod
    def from_yaml(cls, source: str | Path, *, folder: Path | None = None) -> Study:
        """Read a study; strict, and faults are named with their path (``conditions.2.grid``).

        Args:
            source: The file (a ``Path``), or its text (a ``str``).
            folder: What names of files in it are relative to; by default the file's folder, or the
                present one.

        Raises:
            InputError: No such file, an unknown key, or an impossible value.
        """
        if isinstance(source, Path):
            folder = source.absolute().parent if folder is None else folder
            try:
                source = source.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"no study can be read from {str(source)!r}: {error}") from None
        folder = Path.cwd() if folder is None else folder
        file = read_study(source)
        plans = tuple(
            PlanText.read(spec, f"conditions.{index}", folder)
            for index, spec in enumerate(file.conditions)
        )
        made = cls(file, source, folder, plans)
        for plan in plans:
            # What depends on the number of layers is found when the model is there.
            if not any(isinstance(values, str | dict) for values in plan.spec.grid.values()):
                conditions_of([plan], 1)
        _ = made.measures, made.analyses, made.states
        return made

    @cached_property
    def measures(self) -> tuple[AnswerMeasure, ...]:
        """What is measured of answers."""
        specs = (spec for spec in self.file.scored if not is_analysis(spec))
        return tuple(measure_of(spec, self.folder) for spec in specs)

    @cached_property
    def analyses(self) -> tuple[tuple[Analysis, int | None], ...]:
        """What is run once on every untouched model, and of how many items; None for all."""
        specs = (spec for spec in self.file.scored if is_analysis(spec))
        return tuple((analysis_of(spec, self.file), spec.items) for spec in specs)

    @cached_property
    def states(self) -> StatesSpec | None:
        """The states that are kept under every condition; None for none."""
        return states_of(self.file)

    def run(
        self,
        out: str | Path,
        *,
        shard: Shard = (1, 1),
        engine: StudyEngine | None = None,
        models: Mapping[str, VisualLM] | None = None,
        command: str = "",
        progress: Progress = silent,
    ) -> StudyResult:
        """Compute what is not there yet, and read the table of all that is.

        Every unit is on disk when it is done. A study that was stopped, in whatever way, goes on
        where it was when it is run again: nothing is computed twice, and the table is that of an
        uninterrupted run, to the last bit on the same machine with as many threads.

        Args:
            out: The study's folder, made if it is not there.
            shard: ``(3, 16)`` computes every sixteenth unit, beginning with the third, into a file
                of its own; the table is then that of all files in the folder.
            engine: Computes units, for instance a `RayEngine`; one after the other, in this
                process, without one.
            models: Models in memory, by what the study calls them; all others are loaded.
            command: By which it was started, for the report.
            progress: Called with the units that are done.

        Raises:
            InputError: Data, plans or measures that do not fit together, a folder of another study
                (the file, its data, its models or a package changed: the difference is named), or
                another process at work on it.
        """
        number, of = shard
        if not 1 <= number <= of:
            raise InputError(f"shard {number}/{of}: write 1/{of} to {of}/{of}")
        folder = StudyFolder(Path(out))
        folder.check()
        engine = engine or SerialEngine()
        try:
            task = self.task(folder, models, progress, engine)
            folder.compare(task.items)
            drive(task, self.text, folder, shard, engine, command, progress)
        finally:
            engine.close()
        return StudyResult.read(folder.path)

    def task(
        self,
        folder: StudyFolder | None = None,
        models: Mapping[str, VisualLM] | None = None,
        progress: Progress = silent,
        engine: StudyEngine | None = None,
    ) -> Task:
        """The study with its data read and its models looked at; nothing is computed.

        Args:
            folder: Its folder; without one nothing is kept.
            models: As for :meth:`run`.
            progress: Called as the models are opened.
            engine: Where units will be computed; in this process without one.
        """
        engine = engine or SerialEngine()
        if self.states is not None and not isinstance(engine, StatesEngine):
            raise InputError(
                "measures: states are written by the process that holds the model, and Ray's "
                "workers do not: run it without --engine ray, in shares with --shard 1/2 and so on"
            )
        given = dict(models or {})
        if unknown := set(given) - {model.called for model in self.file.models}:
            raise InputError(f"models: the study has none called {sorted(unknown)[0]!r}")
        keep = None if folder is None else folder.path / IMAGES
        items = declared_items(self.file.data, self.folder, keep)
        self._check_items(items)
        spec = self.file.markers
        calibration: list[Item] = []
        if spec is not None and spec.discover is not None:
            calibration = declared_items(spec.discover, self.folder, keep)
        out = None if folder is None else folder.path
        opened = OpenedModels(self.file, self.folder, out, calibration, given)
        markers = markers_identity(spec, self.folder, calibration)
        parts, identities = [], {}
        for index, model in enumerate(self.file.models):
            progress(f"opening {model.called}", index, len(self.file.models))
            identity = engine.identify(opened, index)
            identities[model.called] = identity
            if self.states is not None:
                check_states(self.states, opened.observer(index).model)
            told = json.dumps([model.called, identity])
            parts.append(ModelPart(told, conditions_of(self.plans, identity["layers"])))
        shown = (c.wrong_image for part in parts for c in part.conditions)
        items = with_wrong_images(items, sorted({seed for seed in shown if seed is not None}))
        settings = {
            **self.file.model_dump(
                include={"batch_size", "conditions_at_once", "max_new_tokens", "nearest_words"}
            ),
            **machine(),
        }
        by_kind = {kind: [m for m in self.measures if m.kind == kind] for kind in KINDS}
        measures = {kind: of_kind for kind, of_kind in by_kind.items() if of_kind}
        said = json.dumps([settings, markers], sort_keys=True)
        sizes = self.file.batch_size, self.file.conditions_at_once
        units = Units(parts, items, measures, said, *sizes)
        what = {
            "name": self.file.name,
            "models": identities,
            "data": {"items": len(items), "content": _digest([item.key for item in items])},
            "conditions": {plan.spec.name: plan.text for plan in self.plans},
            "measures": {measure.name: measure.said for measure in self.measures},
            "markers": markers,
            "seed": self.file.seed,
            **settings,
        }
        if self.analyses:
            versions = {one.name: source_version(one) for one, _ in self.analyses}
            what["analyses"] = {**versions, "items": [most for _, most in self.analyses]}
        identity_of = [part.identity for part in parts]
        seed = self.file.seed
        analyses = analysis_units(self.analyses, identity_of, items, said, seed)
        states = None
        if self.states is not None:
            what[STATES] = self.states.model_dump(exclude={"measure"})
            called = dict(zip(identities, (part.conditions for part in parts), strict=True))
            few = items[: self.states.items]
            states = StudyStates(self.states, few, called, self.file.batch_size, out)
        return Task(units, opened, what, tuple(analyses), states)

    def _check_items(self, items: list[Item]) -> None:
        for measure in self.measures:
            for number, item in enumerate(items):
                if lacking := measure.check(item):
                    raise InputError(
                        f"measures: {measure.name} cannot be taken of item {number} "
                        f"({item.question!r}), which {lacking}"
                    )


def _digest(values: list[Any]) -> str:
    return sha256(json.dumps(values).encode()).hexdigest()
