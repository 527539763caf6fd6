"""What conditions say: where nothing changes, where something does, and what a control shows."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis import Result
from ..comparison_of_plans.measure_names import measure_name, measure_title
from ..comparison_of_plans.named_plans import UNTOUCHED
from ..comparison_of_plans.report_text import amount, change
from ..numbers_in_words import counted, listing, p_value

SURE = 0.05


def told_change(row: Mapping[Any, Any], metric: str, margin: float) -> str:
    """A change with its interval, and what that shows."""
    if pd.isna(row["difference_low"]):
        return f"{change(row, metric)}, of too few images to say more"
    said = {
        "agrees": f", within the margin of {amount(margin, metric)}",
        "differs": f", beyond the margin of {amount(margin, metric)}",
        "undecided": f", neither within nor beyond {amount(margin, metric)}",
    }
    return change(row, metric) + said[row["verdict"]]


def told_verdicts(rows: pd.DataFrame, name: str) -> str:
    """How many conditions agree with the untouched model, differ and are undecided, by a column."""
    parts = []
    for verdict, how in (
        ("agrees", "no change in"),
        ("differs", "a change in"),
        ("undecided", "undecided in"),
    ):
        found = rows[rows["verdict"] == verdict]
        if len(found):
            named = f": {listing(map(str, found[name]))}" if verdict == "differs" else ""
            parts.append(f"{how} {len(found)}{named}")
    return "; ".join(parts)


def beyond_control(result: Result, rows: pd.DataFrame, told: str = "condition") -> str:
    """Which conditions do other than as many random tokens, corrected for all (Holm)."""
    controlled = rows[rows["control_p_holm"].notna()]
    if controlled.empty:
        return ""
    sure = controlled[controlled["control_p_holm"] <= SURE]
    n = counted(len(controlled), "comparison")
    if sure.empty:
        return (
            f"In none of {n} with as many random visual tokens is a difference shown, corrected "
            "for all (Holm)."
        )
    largest = sure.loc[sure["beyond"].abs().groupby(sure["metric"]).idxmax()]
    named = listing(
        f"{row[told]} ({amount(row['beyond'], row['metric'], signed=True)} of "
        f"{measure_name(result, row['metric'])}, {p_value(row['control_p_holm'])})"
        for row in largest.to_dict("records")
    )
    return (
        f"In {len(sure)} of {n} with as many random visual tokens a difference is shown, corrected "
        f"for all (Holm); the largest by measure: {named}."
    )


def table_of_changes(
    result: Result, rows: pd.DataFrame, columns: Mapping[str, str]
) -> pd.DataFrame | None:
    """One line per condition and task: what it is about, and its change in every measure."""
    rows = rows[rows["condition"] != UNTOUCHED]
    lines = []
    for (_, _), mine in rows.groupby(["condition", "task"], sort=False):
        first = mine.iloc[0]
        line: dict[str, object] = {title: _cell(first[column]) for column, title in columns.items()}
        line |= {"Task": first["task"], "Questions": int(first["examples"])}
        for row in mine.to_dict("records"):
            title = measure_title(result, row["metric"])
            line[title] = f"{change(row, row['metric'])} · {row['verdict']}"
        known = mine["control_p_holm"].dropna()
        if rows["control_p_holm"].notna().any():
            line["Least p beyond control (Holm)"] = (
                p_value(known.min()).removeprefix("p = ") if len(known) else "–"
            )
        lines.append(line)
    return pd.DataFrame(lines) if lines else None


def _cell(value: Any) -> str:
    return "–" if value is None or pd.isna(value) else str(value)
