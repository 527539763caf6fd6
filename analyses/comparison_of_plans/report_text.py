"""What a comparison says: which conditions differ, and which more than their control."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..numbers_in_words import counted, difference, listing, number, p_value, percent
from ..select_rows import one, select
from .axis_of_changes import RUN_OFF
from .figure import draw_comparison
from .measure_names import answers_are_own, measure_name
from .named_plans import UNTOUCHED
from .outcomes import DOING

_SURE = 0.05


def _findings(result: Result) -> list[str]:
    rows = select(result.frame, task="all")
    said = [told_reference(result)] if "accuracy" in result.meta["margins"] else []
    for metric in result.meta["margins"]:
        here = select(rows, metric=metric)
        said.append(_verdicts(result, here[here["condition"] != UNTOUCHED], metric))
    controlled = rows[rows["control"].notna()]
    if not controlled.empty:
        said.append(_beyond_control(result, controlled))
    return said


def told_reference(result: Result) -> str:
    """What answers are compared with, and how often the untouched model gives them."""
    row = one(result.frame, task="all", condition=UNTOUCHED, metric="accuracy")
    n = int(row["examples"])
    if answers_are_own(result):
        return (
            "There are no given answers: what is measured is agreement with what the untouched "
            f"model itself writes to the {counted(n, 'question')}."
        )
    expected = counted(n, "expected answer")
    return f"The untouched model gives {percent(row['value'])} of the {expected}."


def _verdicts(result: Result, rows: pd.DataFrame, metric: str) -> str:
    margin = amount(result.meta["margins"][metric], metric)
    parts = []
    for verdict, how in (("differs", "more"), ("agrees", "less")):
        found = rows[rows["verdict"] == verdict].to_dict("records")
        if found:
            told = listing(f"{row['condition']} ({change(row, metric)})" for row in found)
            parts.append(f"by {how} than {margin} under {len(found)}: {told}")
    if undecided := int((rows["verdict"] == "undecided").sum()):
        parts.append(f"undecided under {undecided}")
    n = counted(len(rows), "condition")
    return f"Of {n}, {measure_name(result, metric)} changes {'; '.join(parts)}."


def _beyond_control(result: Result, rows: pd.DataFrame) -> str:
    told = []
    for name, metric in rows[["condition", "metric"]].drop_duplicates().itertuples(index=False):
        row = one(rows, condition=name, metric=metric)
        if row["control_p_holm"] <= _SURE:
            change = amount(row["beyond"], metric, signed=True)
            p = p_value(row["control_p_holm"])
            told.append(f"{name} in {measure_name(result, metric)} (by {change}, {p})")
    if not told:
        return "No condition is shown to do other than its control, corrected for all (Holm)."
    return f"Other than its control, corrected for all (Holm): {listing(told)}."


def change(row: Mapping[Any, Any], metric: str) -> str:
    """A change with its interval, in the unit of its measure."""
    if metric == "accuracy":
        return difference(row)
    low, high = row["difference_low"], row["difference_high"]
    ends = f" ({_plain(low, metric)} to {_plain(high, metric)})" if low == low else ""
    return amount(row["difference"], metric, signed=metric == "logprob") + ends


def amount(value: float, metric: str, *, signed: bool = False) -> str:
    """A change in the unit of its measure, with its sign where it can have either."""
    plus = "+" if signed and value > 0 else ""
    if metric in ("kl", "logprob"):
        return f"{plus}{number(value)} nats"
    unit = "points" if metric == "accuracy" or signed else "%"
    return f"{plus}{number(100 * value, 1)} {unit}"


def _plain(value: float, metric: str) -> str:
    return number(value) if metric in ("kl", "logprob") else number(100 * value, 1)


def _table(result: Result) -> pd.DataFrame:
    """The table of the report: every condition and measure, by task."""
    rows = result.frame[result.frame["condition"] != UNTOUCHED]
    return pd.DataFrame(
        {
            "Condition": rows["condition"],
            "Measure": [measure_name(result, metric) for metric in rows["metric"]],
            "Task": rows["task"],
            "Questions": rows["examples"],
            "Images": rows["images"],
            "Change": [change(row, row["metric"]) for row in rows.to_dict("records")],
            "p (Holm)": [_p(p) for p in rows["p_holm"]],
            "Beyond control, p (Holm)": [_p(p) for p in rows["control_p_holm"]],
            "Verdict": rows["verdict"],
        }
    )


def _p(p: float) -> str:
    return p_value(p).removeprefix("p = ") if p == p else "–"


COMPARISON = Analysis(
    name="comparison",
    run=None,
    figure=draw_comparison,
    doing=DOING,
    order=65,
    heading="What does each plan change?",
    method="Every plan and the untouched model answer the same questions. Changes are paired; "
    "intervals are over images, and tests are corrected for all conditions and measures (Holm). "
    "A condition differs when its whole interval lies beyond the margin, and agrees with the "
    "untouched model when it lies within.",
    caption="Change under each plan, with 95 % intervals over images; the strip is the margin. "
    + RUN_OFF,
    findings=_findings,
    table=_table,
)
register(COMPARISON)
