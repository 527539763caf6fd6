"""The report of a study: one page that needs nothing else, with all it takes to repeat it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..analysis import find
from ..figures import png
from ..numbers_in_words import counted, difference, estimate, number, p_value, share
from ..report.page_environment import page_environment
from ..select_rows import select
from ..sizes import size
from ..statistics import MIN_IMAGES
from .condition_grid import PlanText
from .means_and_differences import ALL
from .measures import measure_title
from .study_figure import MOST_ROWS, draw_measure
from .study_file import STATES
from .study_folder import PAGE, StudyFolder
from .study_result import StudyResult

_DIGITS = 3
_PACKAGES = "packages"


@dataclass(frozen=True)
class _Section:
    """One measure on one model as the template needs it."""

    heading: str
    method: str
    picture: str | None
    table: list[list[str]]
    groups: list[list[str]]


@dataclass(frozen=True)
class _AnalysisSection:
    """One analysis of one model as the template needs it."""

    heading: str
    method: str
    picture: str
    caption: str
    findings: list[str]
    table: list[list[str]] | None


def write_study_report(result: StudyResult) -> Path:
    """Write ``report.html``, the table and the summary into a study's folder.

    An unfinished study has a report too, which says what is missing.

    Returns:
        The page.
    """
    result.save()
    folder = StudyFolder(result.folder)
    folder.write_text(PAGE, render_study(result))
    return folder.path / PAGE


def render_study(result: StudyResult) -> str:
    """The page."""
    study, items = result.study, result.items
    environment = page_environment("embedlens.analyses.studies")
    return environment.get_template("study.html.j2").render(
        title=study["name"],
        data=_data(result, items),
        headlines=list(headlines(result)),
        sections=list(_sections(result)),
        analyses=list(_analyses(result)),
        states=list(_states(result)),
        errors=result.errors.values.tolist(),
        facts=list(_facts(result)),
        plans=[
            (plan.spec.name, yaml.safe_dump(_said(plan), sort_keys=False, allow_unicode=True))
            for plan in map(PlanText.from_text, study["conditions"].values())
        ],
        text=StudyFolder(result.folder).text,
        packages=study[_PACKAGES],
        min_images=MIN_IMAGES,
    )


def _said(plan: PlanText) -> Any:
    wrong = plan.spec.wrong_image
    return plan.data if wrong is None else {**plan.data, "wrong_image": wrong}


def headlines(result: StudyResult) -> Iterator[str]:
    """The study in sentences: whether it is whole, the untouched model, what differs surely."""
    left = result.units - result.done - result.failed
    if not result.complete:
        yield (
            f"Unfinished: {result.done} of {counted(result.units, 'unit')} are done, "
            f"{result.failed} failed, {left} still to be computed."
        )
    rows = select(result.summary, group=ALL)
    for (model, measure), of_measure in rows.groupby(["model", "measure"], sort=False):
        told = result.study["measures"][measure]
        compared = of_measure[of_measure["p"].notna()]
        sure = compared[compared["p_corrected"] <= 0.05].sort_values("p_corrected", kind="stable")
        where = _heading(result, model, measure)
        clean = _dicts(of_measure)[0]
        text = f"{where}: {_value(clean, told)} untouched; "
        text += f"{len(sure)} of {counted(len(compared), 'comparison')} differ surely"
        if len(sure):
            first = _dicts(sure)[0]
            text += (
                f", the surest {first['condition']} against {first['against']}: "
                f"{_difference(first, told)}"
            )
        yield f"{text}."
    yield from _findings(result)


def _findings(result: StudyResult) -> Iterator[str]:
    """The first sentence of every analysis that belongs into a summary."""
    for (model, name), found in result.analyses.items():
        analysis = find(name)
        if analysis.headline and (said := analysis.findings(found)):
            where = f"{name} of {model}" if len(result.study["models"]) > 1 else name
            yield f"{where}: {said[0]}"


def _data(result: StudyResult, items: pd.DataFrame) -> str:
    study = result.study
    models = ", ".join(study["models"])
    n = len({name for _, name in result.analyses})
    analysed = f", {n} {'analyses' if n > 1 else 'analysis'}" * bool(n)
    conditions = {name: len(listed) for name, listed in result.conditions.items()}
    kept = ", states kept" * (STATES in study)
    return (
        f"{counted(len(items), 'question')} about {counted(items['image'].nunique(), 'image')}, "
        f"{counted(max(conditions.values()), 'condition')}, "
        f"{counted(len(study['measures']), 'measure')}{analysed}{kept}; on {models}."
    )


def _sections(result: StudyResult) -> Iterator[_Section]:
    for (model, measure), rows in result.summary.groupby(["model", "measure"], sort=False):
        told = result.study["measures"][measure]
        every = select(rows, group=ALL)
        few = every[: MOST_ROWS + 1]
        drawn = len(few) <= MOST_ROWS and few["value"].notna().any()
        figure = draw_measure(few, measure_title(str(measure)), told) if drawn else None
        yield _Section(
            _heading(result, model, measure),
            told["method"],
            None if figure is None else b64encode(png(figure)).decode(),
            [_cells(row, told) for row in _dicts(every)],
            [[str(row["group"]), *_cells(row, told)] for row in _dicts(rows[rows.group != ALL])],
        )


def _analyses(result: StudyResult) -> Iterator[_AnalysisSection]:
    several = len(result.study["models"]) > 1
    for (model, name), found in result.analyses.items():
        analysis = find(name)
        table = analysis.table(found)
        yield _AnalysisSection(
            f"{analysis.heading} ({model})" if several else analysis.heading,
            f"{analysis.method} {analysis.data(found)}".strip(),
            b64encode(png(analysis.figure(found))).decode(),
            analysis.caption,
            analysis.findings(found),
            None if table is None else _lines(table),
        )


def _states(result: StudyResult) -> Iterator[list[str]]:
    """Per folder of states its model, condition, place, contents and size."""
    for (model, condition), states in result.states.items():
        folder = states.folders[0].path
        layers = states.sites.items()
        sites = ", ".join(f"{site} of {counted(len(n), 'layer')}" for site, n in layers)
        yield [
            *(model, condition, folder.relative_to(result.folder).as_posix(), sites),
            f"{states.n_blocks - states.left} of {states.n_blocks}",
            *(str(len(states)), size(states.folders[0].n_bytes)),
        ]


def _lines(table: pd.DataFrame) -> list[list[str]]:
    rows: list[list[Any]] = [list(table.columns), *table.values.tolist()]
    return [[str(cell) for cell in row] for row in rows]


def _heading(result: StudyResult, model: object, measure: object) -> str:
    title = measure_title(str(measure))
    return f"{title} of {model}" if len(result.study["models"]) > 1 else title


def _dicts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for _, row in rows.iterrows()]


def _cells(row: Mapping[str, Any], told: Mapping[str, Any]) -> list[str]:
    n = f"{row['n']} ({row['images']})" + f", {row['missing']} missing" * bool(row["missing"])
    if isnan(row["difference"]):
        return [row["condition"], _value(row, told), n, "", "", "", ""]
    ps = (p_value(row[name]) for name in ("p", "p_corrected"))
    cells = (text.removeprefix("p ").removeprefix("= ") for text in ps)
    p, corrected = (cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in cells)
    pairs = f"{row['against']}, {counted(row['pairs'], 'pair')}"
    return [row["condition"], _value(row, told), n, pairs, _difference(row, told), p, corrected]


def _value(row: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    if isnan(row["value"]):
        return "—"
    return share(row) if told["share"] else estimate(row, _DIGITS)


def _difference(row: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    if told["share"]:
        return difference(row)
    ends = ("difference", "difference_low", "difference_high")
    value, low, high = (float(row[name]) for name in ends)
    text = ("+" if value > 0 else "") + number(value, _DIGITS)
    return text if isnan(low) else f"{text} ({number(low, _DIGITS)} to {number(high, _DIGITS)})"


def _facts(result: StudyResult) -> Iterator[tuple[str, str]]:
    study = result.study
    for name, identity in study["models"].items():
        told = ("{layers} layers, {dtype} on {device}, {attention} attention, weights {weights}",)
        yield f"Model {name}", told[0].format_map(identity)
    yield "Data", f"{study['data']['items']} items, content {study['data']['content'][:32]}"
    if study["markers"] is not None:
        yield "Classes", json.dumps(study["markers"], ensure_ascii=False)
    sizes = ("batch_size", "conditions_at_once", "max_new_tokens", "seed")
    yield "Settings", ", ".join(f"{name} {study[name]}" for name in sizes)
    versions = dict(study.get("analyses", {}))
    for most, (name, version) in zip(versions.pop("items", []), versions.items(), strict=True):
        few = "all items" if most is None else f"the first {counted(most, 'item')}"
        yield f"Analysis {name}", f"of {few}, source {version}"
    if STATES in study:
        asked = study[STATES].items()
        yield "States", ", ".join(f"{name} {value}" for name, value in asked if value is not None)
    done = f"{result.done} of {result.units} done in {result.seconds:.0f} s"
    halved = f", batches halved {counted(result.halvings, 'time')} for lack of memory"
    yield "Units", done + halved * bool(result.halvings)
    for started, command, machine, units in result.sessions:
        place = json.loads(machine)
        where = place["gpu"] or f"{place['threads']} of {place['cores']} cores"
        yield f"Run {started}", f"{command}: {counted(units, 'unit')} on {place['system']}, {where}"
