"""Analyses as measures of a study: a registered one by its name, once on each untouched model.

Each is a unit of its own, kept as a saved result under the study's folder. Its key is made of
contents, as that of other units: the model, the items, the settings, and the analysis with its
source, so that a changed analysis is another one.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from ...lens.errors import InputError
from ..analysis import Analysis, Result, find, registered
from ..example import Example
from ..report.sentences import everyday_sentences
from ..report_inputs import Material
from .encoded_items import encoded_items
from .failures import said
from .items import Item
from .measures import MEASURES
from .observing import Observer
from .study_file import MeasureSpec, StudyFile

_ERROR = "error.json"


class AnalysisUnit(NamedTuple):
    """One analysis on one model.

    Attributes:
        model: Number of the model in the study.
        name: Of the analysis.
        key: Of its contents, 32 hexadecimal digits.
        items: How many of the study's items it is about, from the first one on.
    """

    model: int
    name: str
    key: str
    items: int

    @property
    def folder(self) -> str:
        """What its result is called in the study's folder of analyses."""
        return f"{self.model}-{self.name}-{self.key}"


Add = Callable[[AnalysisUnit, Result | Exception], None]


def is_analysis(spec: MeasureSpec) -> bool:
    """Whether a measure of a study is an analysis."""
    return spec.function is None and spec.measure not in MEASURES and spec.measure in registered()


def analysis_of(spec: MeasureSpec, study: StudyFile) -> Analysis:
    """The analysis that a measure of a study names.

    Raises:
        InputError: It needs what a study does not have.
    """
    found = find(spec.measure)
    if found.run is None:
        raise InputError(
            f"measures: {found.name} has to be told more than a study knows: call its own function"
        )
    has = {"markers"} if study.markers is not None else set()
    if lacking := sorted(set(found.needs) - has):
        why = "say markers:" if lacking[0] == "markers" else "no study knows it"
        raise InputError(f"measures: {found.name} needs {lacking[0]}: {why}")
    if remote := [model.called for model in study.models if model.remote]:
        raise InputError(f"measures: {found.name} cannot be run on a server ({remote[0]})")
    return found


def source_version(analysis: Analysis) -> str:
    """A digest of the files that an analysis is made of: those beside its own functions."""
    files: set[Path] = set()
    for function in (analysis.run, analysis.figure, analysis.findings):
        file = Path(str(sys.modules[function.__module__].__file__))
        whole = file.parent.parent == Path(__file__).parent.parent
        files |= set(file.parent.glob("*.py")) if whole else {file}
    digest = sha256()
    for file in sorted(files):
        digest.update(f"{file.name} ".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def analysis_units(
    analyses: Sequence[tuple[Analysis, int | None]],
    models: Sequence[str],
    items: Sequence[Item],
    settings: str,
    seed: int,
) -> list[AnalysisUnit]:
    """Every analysis on every model.

    Args:
        analyses: Which ones, and of how many items; None for all.
        models: The identity of each model.
        items: What the study asks.
        settings: What else decides numbers.
        seed: Of every random choice in an analysis.
    """
    found = []
    for model, identity in enumerate(models):
        for analysis, most in analyses:
            few = items[:most]
            told = [identity, settings, seed, analysis.name, source_version(analysis)]
            text = json.dumps([*told, [item.key for item in few]])
            key = sha256(text.encode()).hexdigest()[:32]
            found.append(AnalysisUnit(model, analysis.name, key, len(few)))
    return found


def analyse(
    observer: Observer, unit: AnalysisUnit, study: StudyFile, items: Sequence[Item]
) -> Result | Exception:
    """The result of an analysis, or what went wrong."""
    try:
        run = find(unit.name).run
        assert run is not None
        return run(material_of(observer, items[: unit.items], study))
    # Whatever an analysis raises on these data: it costs this analysis only, and is recorded.
    except Exception as error:
        error.__traceback__ = None
        return error


def material_of(
    observer: Observer, items: Sequence[Item], study: StudyFile, batches: int | None = None
) -> Material:
    """What an analysis of some items is given; with so many ``batches``, without all others."""
    pictures = {tuple(p.digest for p in item.pictures): item for item in items}
    once, size = list(pictures.values()), study.batch_size
    encoded = [
        encoded_items(observer.model, once[i : i + size], observer.markers, observer.nearest_words)
        for i in range(0, len(once), size)[:batches]
    ]
    examples = [
        Example(
            [picture.read() for picture in item.pictures],
            item.question,
            item.answer if item.answers else None,
            item.group or "question",
        )
        for item in items
    ]
    return Material(
        observer.model,
        encoded,
        examples,
        everyday_sentences(),
        markers=observer.markers,
        examples_at_once=size,
        seed=study.seed,
    )


@dataclass(frozen=True)
class KeptAnalyses:
    """The results of analyses in a study's folder; each appears whole or not at all.

    Attributes:
        path: Where they are.
    """

    path: Path

    def counts(self) -> tuple[int, int]:
        """How many results there are, and how many failures."""
        return len(self._parts("")), len(list(self.failures()))

    def has(self, unit: AnalysisUnit) -> bool:
        """Whether its result is there."""
        return (self.path / unit.folder).is_dir()

    def add(self, unit: AnalysisUnit, found: Result | Exception) -> None:
        """Keep a result, or why there is none; one that failed is tried again next time."""
        self.path.mkdir(parents=True, exist_ok=True)
        failed = self.path / f"{unit.folder}.{_ERROR}"
        if isinstance(found, Exception):
            part = self.path / f".{unit.folder}.{os.getpid()}"
            part.write_text(json.dumps(said(found)), encoding="utf-8")
            part.replace(failed)
            return
        found.save(self.path / unit.folder, overwrite=True)
        failed.unlink(missing_ok=True)

    def results(self) -> Iterator[tuple[int, str, Result]]:
        """Every result with the number of its model and the analysis' name, in that order."""
        for folder, model, name in self._parts(""):
            yield model, name, Result.load(folder)

    def failures(self) -> Iterator[tuple[int, str, str]]:
        """What could not be computed, with the error."""
        for file, model, name in self._parts(f".{_ERROR}"):
            if not file.with_name(file.name.removesuffix(f".{_ERROR}")).is_dir():
                yield model, name, json.loads(file.read_text(encoding="utf-8"))

    def merge(self, other: KeptAnalyses) -> None:
        """Take what another study's folder has and this one has not."""
        for folder, _, _ in other._parts(""):
            target = self.path / folder.name
            if not target.is_dir():
                self.path.mkdir(parents=True, exist_ok=True)
                part = self.path / f".{folder.name}.{os.getpid()}"
                shutil.copytree(folder, part, dirs_exist_ok=True)
                part.rename(target)
        for file, _, _ in other._parts(f".{_ERROR}"):
            if not (self.path / file.name.removesuffix(f".{_ERROR}")).is_dir():
                self.path.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.path / file.name)

    def _parts(self, end: str) -> list[tuple[Path, int, str]]:
        found = []
        for file in self.path.iterdir() if self.path.is_dir() else ():
            if not file.name.startswith(".") and file.name.endswith(_ERROR) == bool(end):
                number, name, _ = file.name.removesuffix(end).split("-")
                found.append((file, int(number), name))
        return sorted(found, key=itemgetter(1, 2))
