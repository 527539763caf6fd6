"""What redundancy says: what visual tokens can skip, where, and which of them."""

import pandas as pd

from ..analysis import Analysis, Result, register
from ..claim import SECOND_HAND, Claim
from ..comparison_of_plans.axis_of_changes import RUN_OFF
from ..comparison_of_plans.measure_names import measure_name
from ..comparison_of_plans.outcomes import DOING
from ..comparison_of_plans.report_text import amount, change, told_reference
from ..numbers_in_words import counted, listing, percent
from ..select_rows import one, select
from ..statistics import Evidence
from ..sweep_over_layers.condition import ALL_VISUAL
from ..sweep_over_layers.conditions_in_words import (
    beyond_control,
    table_of_changes,
    told_change,
    told_verdicts,
)
from ..sweep_over_layers.run_on_report import run_on_report
from .figure import draw_redundancy
from .measure import redundancy

_NAMES = {"attention": "attention", "ffn": "the FFN", "both": "both"}


def _metric(result: Result) -> str:
    """The measure that is told first."""
    return str(next(iter(result.meta["margins"])))


def everywhere(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of what is left out in all layers at once."""
    return rows[(rows["scope"] == "above") & (rows["layer"] == 0)]


def _findings(result: Result) -> list[str]:
    metric, rows = _metric(result), select(result.frame, task="all")
    said = []
    whole = select(everywhere(rows), metric=metric)
    for tokens in dict.fromkeys(whole["tokens"]):
        of = select(whole, tokens=tokens).to_dict("records")
        told = listing(
            f"without {_NAMES[row['operation']]} {told_change(row, metric, _margin(result))}"
            for row in of
        )
        share = percent(result.meta["shares"][tokens])
        said.append(f"Skipped by {_called(tokens, share)} in all layers: {told}.")
    if metric == "accuracy":
        said.append(told_reference(result))
    said += _windows(result, rows)
    if control := beyond_control(
        result, whole.assign(told=whole["operation"].map(_NAMES) + " of " + whole["tokens"]), "told"
    ):
        said.append(f"In all layers: {control[0].lower()}{control[1:]}")
    return said + _tasks(result)


def _called(tokens: str, share: str) -> str:
    return "all visual tokens" if tokens == ALL_VISUAL else f"{tokens} tokens ({share} of them)"


def _margin(result: Result) -> float:
    return float(result.meta["margins"][_metric(result)])


def _windows(result: Result, rows: pd.DataFrame) -> list[str]:
    """Which windows of layers, or single layers, matter."""
    metric, said = _metric(result), []
    for scope in ("single", "window"):
        here = select(rows, metric=metric, scope=scope, tokens=ALL_VISUAL)
        for operation in dict.fromkeys(here["operation"]):
            of = select(here, operation=operation)
            where = (
                f"{counted(len(of), 'single layer')}"
                if scope == "single"
                else f"{counted(len(of), 'window')} of {result.meta['width']} layers"
            )
            said.append(
                f"Of {where} without {_NAMES[operation]} at all visual tokens, "
                f"by a margin of {amount(_margin(result), metric)}: {told_verdicts(of, 'layers')}."
            )
    return said


def _tasks(result: Result) -> list[str]:
    """Which tasks change when all visual tokens skip both in all layers."""
    rows = everywhere(result.frame[result.frame["task"] != "all"])
    rows = select(rows, metric=_metric(result), tokens=ALL_VISUAL)
    said = []
    for operation in dict.fromkeys(rows["operation"]):
        of = select(rows, operation=operation)
        said.append(
            f"Without {_NAMES[operation]} in all layers, of {counted(len(of), 'task')}: "
            f"{told_verdicts(of, 'task')}."
        )
    return said


def _claims(result: Result) -> list[Claim]:
    rows = select(everywhere(result.frame), task="all", metric="accuracy", tokens=ALL_VISUAL)
    rows = select(rows, operation="both")
    if rows.empty:
        return []
    row, margin = one(rows), result.meta["margins"]["accuracy"]
    return [
        Claim(
            "Visual tokens that bypass attention and FFN change little, or for the better.",
            SECOND_HAND,
            f"{change(row, 'accuracy')} in all layers",
            evidence=Evidence.from_row(row),
            agrees_if=f"{measure_name(result, 'accuracy')} changes by less than "
            f"{amount(margin, 'accuracy')}",
        )
    ]


def _table(result: Result) -> pd.DataFrame | None:
    columns = {"operation": "Left out", "tokens": "Tokens"}
    rows = everywhere(result.frame)
    rows = rows[(rows["task"] == "all") | (rows["tokens"] == ALL_VISUAL)]
    return table_of_changes(result, rows, columns)


REDUNDANCY = Analysis(
    name="redundancy",
    run=run_on_report(redundancy),
    figure=draw_redundancy,
    doing=DOING,
    order=61,
    passes=lambda e: 3.5 * e.images * min(8, e.layers) * (1 + 3 * e.classes),
    heading="What can visual tokens skip?",
    method="Chosen visual tokens skip attention, the FFN or both, in some layers; their keys and "
    "values stay readable. Every condition is compared with the untouched model on the same "
    "questions, and with as many visual tokens drawn at random that do the same. A condition "
    "agrees with the untouched model when its whole interval lies within the margin, and differs "
    "when it lies beyond.",
    caption="Change when tokens skip attention, the FFN or both, by the layers in which they do; "
    "bands are 95 % intervals over images, broken lines as many random visual tokens, the strip "
    "is the margin. " + RUN_OFF,
    findings=_findings,
    claims=_claims,
    table=_table,
    by_default=False,
    claims_order=41,
)
register(REDUNDANCY)
