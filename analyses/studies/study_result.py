"""What a study found so far: every number in one tidy table, read from its folder alone."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...lens.errors import InputError
from ..analysis import Result
from ..extraction.extracted_states import ExtractedStates
from .condition_grid import PlanText, StudyCondition, conditions_of
from .means_and_differences import summary
from .measures import KINDS
from .study_analyses import KeptAnalyses
from .study_file import STATES
from .study_folder import ANALYSES, SUMMARY, TABLE, StudyFolder
from .study_states import KeptStates, StatesPlace, blocks_of_states, states_places
from .unit_store import DONE, FAILED, StoredUnit
from .units import Cuts


@dataclass(frozen=True, eq=False)
class StudyResult:
    """What is in a study's folder.

    Attributes:
        folder: Where it is.
        study: What the study is, in plain values: models, conditions, measures, versions.
        units: How many units there are in all.
        done: How many are done.
        failed: How many were tried and have something in them that could not be computed.
        seconds: What all of them took.
        halvings: How often a batch was halved because memory ran out.
        sessions: When which command on which machine began to work on how many units.
    """

    folder: Path
    study: dict[str, Any]
    units: int
    done: int
    failed: int
    seconds: float
    halvings: int
    sessions: tuple[tuple[str, str, str, int], ...]

    def __repr__(self) -> str:
        left = self.units - self.done - self.failed
        return (
            f"StudyResult({self.study['name']!r}: {self.done} of {self.units} units done, "
            f"{self.failed} failed, {left} left; frame, summary, errors, save())"
        )

    @classmethod
    def read(cls, folder: str | Path) -> StudyResult:
        """What is in a folder; a study that is at work may go on meanwhile.

        Raises:
            InputError: The folder holds no study, or files of several.
        """
        place = StudyFolder(Path(folder))
        study, sessions = None, []
        seen: dict[int, tuple[str, float, int]] = {}
        for store in place.open_stores():
            with store:
                study = store.study
                sessions += store.sessions()
                for unit, status, seconds, halvings in store.outcomes():
                    if unit not in seen or seen[unit][0] != DONE:
                        seen[unit] = status, seconds, halvings
        if study is None:
            raise InputError(f"{folder} holds no units of a study")
        states = [status for status, _, _ in seen.values()]
        analysed, not_analysed = KeptAnalyses(place.path / ANALYSES).counts()
        kept = KeptStates(place.path, _places(study))
        whole, not_whole = kept.counts()
        blocks = len(kept.places) * blocks_of_states(study) if kept.places else 0
        return cls(
            place.path,
            study,
            len(_cuts(study)) + len(study["models"]) * len(_analyses(study)) + blocks,
            states.count(DONE) + analysed + whole,
            states.count(FAILED) + not_analysed + not_whole,
            sum(seconds for _, seconds, _ in seen.values()),
            sum(halvings for _, _, halvings in seen.values()),
            tuple(sorted(sessions)),
        )

    @property
    def complete(self) -> bool:
        """Whether every unit is done."""
        return self.done == self.units

    @cached_property
    def conditions(self) -> dict[str, list[StudyCondition]]:
        """The conditions of every model, by what it is called."""
        return _conditions(self.study)

    @property
    def items(self) -> pd.DataFrame:
        """What was asked: item, key, question, answers, choices, group, images, image."""
        return StudyFolder(self.folder).items

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Every number that there is.

        One row per model, condition, measure and item, in that order: model, condition, family,
        against, one column for each variable of a grid (text), measure, item (row of `items`),
        image (the same number for items about a common image), group, value (missing where it
        could not be computed), text (what the model wrote, for measures of that), error.
        """
        return _table(self)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Means with intervals over images, and differences to controls with corrected tests.

        One row per model, condition, measure and group (``all`` = every item); the columns are
        those of `embedlens.analyses.studies.means_and_differences.summary`.
        """
        return summary(self.frame, self.conditions, self.study["measures"], self.study["seed"])

    @cached_property
    def analyses(self) -> dict[tuple[str, str], Result]:
        """What analyses found, by model and name."""
        names = list(self.study["models"])
        kept = KeptAnalyses(self.folder / ANALYSES)
        return {(names[model], name): result for model, name, result in kept.results()}

    @property
    def states_places(self) -> list[StatesPlace]:
        """Where the states of every condition are, or will be; empty where none are kept."""
        return _places(self.study)

    @property
    def kept_states(self) -> KeptStates:
        """The folders of states that there are."""
        return KeptStates(self.folder, self.states_places)

    @property
    def states(self) -> dict[tuple[str, str], ExtractedStates]:
        """The states that there are, by model and condition; each as `read_states` opens it."""
        names = list(self.conditions)
        return {
            (names[place.model], self.conditions[names[place.model]][place.condition].name): (
                ExtractedStates((folder,))
            )
            for place, folder in self.kept_states.there()
        }

    @property
    def errors(self) -> pd.DataFrame:
        """What could not be computed: model, condition, error, and how many numbers it cost.

        An analysis stands in place of a condition, under its own name; of states the numbers are
        items.
        """
        wrong = self.frame[self.frame["error"].notna()]
        columns = ["model", "condition", "error"]
        counts = wrong.groupby(columns, sort=False, observed=True).size()
        names = list(self.study["models"])
        kept = KeptAnalyses(self.folder / ANALYSES)
        failed = [[names[model], name, error, 1] for model, name, error in kept.failures()]
        for (model, condition), found_states in self.states.items():
            for error, items in found_states.errors.groupby("error", sort=False):
                failed.append([model, condition, f"{STATES}: {error}", len(items)])
        found = counts.rename("numbers").reset_index()
        if not failed:
            return found
        return pd.concat([found, pd.DataFrame(failed, columns=found.columns)], ignore_index=True)

    def save(self) -> None:
        """Write the table and the summary into the folder, as Parquet."""
        folder = StudyFolder(self.folder)
        folder.write_table(TABLE, self.frame)
        folder.write_table(SUMMARY, self.summary)


def _conditions(study: dict[str, Any]) -> dict[str, list[StudyCondition]]:
    plans = [PlanText.from_text(text) for text in study["conditions"].values()]
    return {
        name: conditions_of(plans, identity["layers"]) for name, identity in study["models"].items()
    }


def _places(study: dict[str, Any]) -> list[StatesPlace]:
    return states_places(_conditions(study)) if STATES in study else []


def _analyses(study: dict[str, Any]) -> list[str]:
    return [name for name in study.get("analyses", {}) if name != "items"]


def _cuts(study: dict[str, Any]) -> Cuts:
    numbers = tuple(len(conditions) for conditions in _conditions(study).values())
    known = {measure["kind"] for measure in study["measures"].values()}
    kinds = tuple(kind for kind in KINDS if kind in known)
    sizes = study["batch_size"], study["conditions_at_once"]
    return Cuts(numbers, study["data"]["items"], kinds, *sizes)


def stored_units(folder: StudyFolder, study: dict[str, Any]) -> Iterator[StoredUnit]:
    """Every unit that is there, in order; a done one where there are several of a place."""
    stores = [*folder.open_stores(study)]
    try:
        best: StoredUnit | None = None
        for unit in heapq.merge(*(store.units() for store in stores), key=attrgetter("place")):
            if best is not None and best.place != unit.place:
                yield best
                best = None
            if best is None or best.status != DONE:
                best = unit
        if best is not None:
            yield best
    finally:
        for store in stores:
            store.close()


def _table(result: StudyResult) -> pd.DataFrame:
    study = result.study
    folder = StudyFolder(result.folder)
    models, measures = list(study["models"]), study["measures"]
    of_kind = {k: [i for i, m in enumerate(measures.values()) if m["kind"] == k] for k in KINDS}
    parts: list[list[np.ndarray]] = []
    texts: list[np.ndarray] = []
    errors: list[np.ndarray] = []
    cuts = enumerate(_cuts(study))
    for unit in stored_units(folder, study):
        cut = next(cut for place, cut in cuts if place == unit.place)
        items = np.arange(cut.items.start, cut.items.stop)
        for number, row in zip(cut.conditions, json.loads(unit.content or "[]"), strict=True):
            for column, which in enumerate(of_kind[cut.kind]):
                values = [scores[column] for scores in row["values"]]
                numbers = np.array([np.nan if v is None else v for v in values], dtype=float)
                same = [np.full(len(items), i) for i in (cut.model, number, which)]
                parts.append([*same, items, numbers])
                texts.append(_objects(row.get("texts"), len(items)))
                errors.append(_objects(row.get("errors"), len(items)))
    columns = [np.concatenate(one) for one in zip(*parts, strict=True)] if parts else _NOTHING
    text = np.concatenate(texts) if texts else np.array([], dtype=object)
    error = np.concatenate(errors) if errors else np.array([], dtype=object)
    order = np.lexsort(columns[3::-1])
    model, condition, measure, item, value = (column[order] for column in columns)
    asked = folder.items.iloc[item].reset_index(drop=True)
    listed = [result.conditions[name] for name in models]
    here = [listed[m][c] for m, c in zip(model, condition, strict=True)]
    variables = dict.fromkeys(v for row in listed for c in row for v in c.values)
    return pd.DataFrame(
        {
            "model": _text([models[i] for i in model]),
            "condition": _text([c.name for c in here]),
            "family": _text([c.family for c in here]),
            "against": _text([c.against for c in here]),
            **{v: _text([_value(c, v) for c in here]) for v in variables},
            "measure": _text([list(measures)[i] for i in measure]),
            "item": item,
            "image": asked["image"],
            "group": _text(asked["group"]),
            "value": value,
            "text": _text(text[order]),
            "error": _text(error[order]),
        }
    )


_NOTHING = [*(np.array([], dtype=int) for _ in range(4)), np.array([], dtype=float)]


def _objects(values: Sequence[str | None] | None, n: int) -> np.ndarray:
    made = np.full(n, None, dtype=object)
    if values is not None:
        made[:] = values
    return made


def _value(condition: StudyCondition, variable: str) -> str | None:
    return str(condition.values[variable]) if variable in condition.values else None


def _text(values: Any) -> pd.Series:
    return pd.Series(list(values), dtype="string")  # text and nothing, in every pandas
