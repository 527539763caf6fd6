"""What information flow says: in which layers each part of the prompt is read, and by whom."""

from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..comparison_of_plans.axis_of_changes import RUN_OFF
from ..comparison_of_plans.measure_names import measure_name
from ..comparison_of_plans.outcomes import DOING
from ..comparison_of_plans.report_text import amount, told_reference
from ..numbers_in_words import counted, number
from ..select_rows import select
from ..sweep_over_layers.conditions_in_words import (
    beyond_control,
    table_of_changes,
    told_change,
    told_verdicts,
)
from ..sweep_over_layers.run_on_report import run_on_report
from .figure import draw_information_flow, told_metric
from .measure import information_flow


def _findings(result: Result) -> list[str]:
    metric, rows = told_metric(result), select(result.frame, task="all")
    mine, margin = select(rows, metric=metric), result.meta["margins"][metric]
    where = f"{{}} of {counted(result.meta['width'], 'layer')}"
    said = []
    for flow in _flows(mine):
        of = select(mine, flow=flow)
        largest = max(of.to_dict("records"), key=lambda row: abs(float(row["difference"])))
        share = ""
        if flow.startswith(("object", "rest")):
            share = f" ({number(100 * result.meta['shares'][flow], 1)} % of the visual tokens)"
        said.append(
            f"With {flow} blocked{share}, by {measure_name(result, metric)} and a margin of "
            f"{amount(margin, metric)}, "
            f"of {where.format(counted(len(of), 'window'))}: {told_verdicts(of, 'layers')}. "
            f"The largest change is in {_layers(largest['layers'])}: "
            f"{told_change(largest, metric, margin)}{_probability(largest)}."
        )
    said += _order(mine)
    if "accuracy" in result.meta["margins"]:
        said.append(told_reference(result))
    told = rows["flow"].astype(object) + " in " + rows["layers"].astype(object).map(_layers)
    if control := beyond_control(result, rows.assign(told=told), "told"):
        said.append(control)
    return said + _tasks(result, metric)


def _flows(rows: pd.DataFrame) -> list[str]:
    return [str(flow) for flow in dict.fromkeys(rows["flow"].dropna())]


def _layers(layers: Any) -> str:
    text = str(layers)
    return f"layers {text.replace('-', ' to ')}" if "-" in text else f"layer {text}"


def _probability(row: dict[Any, Any]) -> str:
    """The relative change of the answer's probability, where it is known."""
    if row["metric"] != "logprob":
        return ""
    value, low, high = (
        number(100 * row[name], 1) for name in ("relative", "relative_low", "relative_high")
    )
    ends = f" ({low} to {high})" if row["relative_low"] == row["relative_low"] else ""
    return f"; its probability changes by {value} %{ends}"


def _order(rows: pd.DataFrame) -> list[str]:
    """Where the windows that matter begin, of the two halves of the way by the question."""
    begins = {}
    for flow in ("image to question", "question to last"):
        found = select(rows, flow=flow, verdict="differs")["layer"].astype(int)
        if found.empty:
            return []
        begins[flow] = (int(found.min()), int(found.max()))
    told = [
        f"{flow} from layer {low}" + (f" to {high}" if high > low else "")
        for flow, (low, high) in begins.items()
    ]
    return [f"Windows with a change begin, for {told[0]}, and for {told[1]}."]


def _tasks(result: Result, metric: str) -> list[str]:
    """Of every flow, in how many windows each task changes."""
    rows = select(result.frame[result.frame["task"] != "all"], metric=metric)
    said = []
    for flow in _flows(rows):
        of = select(rows, flow=flow)
        parts = [
            f"{task} in {int((mine['verdict'] == 'differs').sum())} of {len(mine)}"
            for task, mine in of.groupby("task", sort=False)
        ]
        said.append(f"By task, windows with a change when {flow} is blocked: {', '.join(parts)}.")
    return said


def _table(result: Result) -> pd.DataFrame | None:
    columns = {"flow": "Blocked", "layers": "Layers"}
    return table_of_changes(result, select(result.frame, task="all"), columns)


INFORMATION_FLOW = Analysis(
    name="information_flow",
    run=run_on_report(information_flow),
    figure=draw_information_flow,
    doing=DOING,
    order=64,
    passes=lambda e: 3 * e.images * min(8, e.layers),
    heading="How does what is seen reach the answer?",
    method="In a window of layers some tokens cannot see others: the question the image, the last "
    "token the question, the last token the image. Changes are to the untouched model on the same "
    "questions; a window changes something when its whole interval lies beyond the margin. That a "
    "window is needed does not say that nothing flows in others.",
    caption="Change when one part of the prompt is hidden from another, by the first layer of the "
    "window; bands are 95 % intervals over images, the strip is the margin. " + RUN_OFF,
    findings=_findings,
    table=_table,
    by_default=False,
)
register(INFORMATION_FLOW)
