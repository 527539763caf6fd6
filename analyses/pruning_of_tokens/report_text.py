"""What pruning says: which tokens can be dropped, more than any others, and what that saves."""

from collections.abc import Mapping
from math import isnan
from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..claim import SECOND_HAND, Claim
from ..comparison_of_plans.axis_of_changes import RUN_OFF
from ..comparison_of_plans.measure_names import measure_name
from ..comparison_of_plans.outcomes import DOING
from ..comparison_of_plans.report_text import amount, change, told_reference
from ..numbers_in_words import listing, number, percent
from ..select_rows import one, select
from ..statistics import Evidence
from ..sweep_over_layers.conditions_in_words import (
    beyond_control,
    table_of_changes,
    told_change,
    told_verdicts,
)
from ..sweep_over_layers.run_on_report import run_on_report
from .figure import draw_pruning
from .measure import pruning

PAPER = (
    "The paper, second-hand, for LLaVA-1.5-7B and the mean of four groups of tasks: 52.7 as it is, "
    "52.8 without both kinds of sinks, 53.7 without dead tokens (or dead and sink ones: sources "
    "do not agree), and 50.1 with as many left at random."
)


def _metric(result: Result) -> str:
    metrics = result.meta["margins"]
    return "accuracy" if "accuracy" in metrics else str(next(iter(metrics)))


def _findings(result: Result) -> list[str]:
    metric, rows = _metric(result), select(result.frame, task="all")
    mine, margin = select(rows, metric=metric), result.meta["margins"][metric]
    said = [
        f"With {_called(row)} dropped, {measure_name(result, metric)} changes by "
        f"{told_change(row, metric, margin)}."
        for row in select(mine, kind="set").to_dict("records")
    ]
    if metric == "accuracy":
        said.insert(1 if said else 0, told_reference(result))
    if control := beyond_control(result, select(rows, kind="set"), "dropped"):
        said.append(control)
    drawn = select(mine, kind="random")
    if len(drawn):
        said.append(f"Of shares dropped at random: {told_verdicts(drawn, 'dropped')}.")
    return said + _saved(result, mine)


def _called(row: Mapping[Any, Any]) -> str:
    share = percent(float(row["share"]))
    return f"{row['dropped']} tokens ({share} of the visual ones)"


def _saved(result: Result, rows: pd.DataFrame) -> list[str]:
    """What is saved by the largest set that changes nothing, or the largest of all."""
    known = rows[rows["kind"].notna()]
    harmless = known[known["verdict"] == "agrees"]
    among = harmless if len(harmless) else known
    row = max(among.to_dict("records"), key=lambda one: float(one["share"]))
    which = "The most that can be dropped without a change" if len(harmless) else "The largest set"
    parts = [f"keeps {percent(row['cache'])} of the cache"]
    if not isnan(row["skipped"]):
        parts.append(f"leaves {percent(row['skipped'])} of the decoder’s operations uncomputed")
    if not isnan(row["speed_up"]):
        ends = f"{number(row['speed_up_low'])} to {number(row['speed_up_high'])}"
        parts.append(
            f"makes passes over {result.meta['timed_samples']} prompts {number(row['speed_up'])} "
            f"times as fast (middle half of {result.meta['repeats']}: {ends})"
        )
    return [f"{which}, {row['dropped']}, {listing(parts)}."]


def _claims(result: Result) -> list[Claim]:
    found = []
    if "accuracy" not in result.meta["margins"]:
        return []
    rows = select(result.frame, task="all", metric="accuracy", kind="set")
    margin = amount(result.meta["margins"]["accuracy"], "accuracy")
    for name, claim in (
        ("sink", "Without sink tokens nothing is lost."),
        ("dead", "Without dead tokens nothing is lost, or even something gained."),
    ):
        if (rows["dropped"] == name).any():
            row = one(rows, dropped=name)
            found.append(
                Claim(
                    claim,
                    SECOND_HAND,
                    f"{change(row, 'accuracy')} without {percent(row['share'])} of the tokens",
                    evidence=Evidence.from_row(row),
                    agrees_if=f"{measure_name(result, 'accuracy')} changes by less than {margin}",
                )
            )
    return found


def _table(result: Result) -> pd.DataFrame | None:
    rows = result.frame[result.frame["kind"].notna()]
    told = rows.assign(
        cache=rows["cache"].map(percent),
        skipped=rows["skipped"].map(lambda x: "not known" if isnan(x) else percent(x)),
        speed_up=rows["speed_up"].map(lambda x: "not timed" if isnan(x) else f"{number(x)} ×"),
        share=rows["share"].map(percent),
    )
    columns = {
        "dropped": "Dropped",
        "share": "Share",
        "cache": "Cache kept",
        "skipped": "Operations skipped",
        "speed_up": "Speed",
    }
    return table_of_changes(result, select(told, task="all"), columns)


PRUNING = Analysis(
    name="pruning",
    run=run_on_report(pruning),
    figure=draw_pruning,
    doing=DOING,
    order=62,
    passes=lambda e: e.images * (12 + 3 * e.classes) + e.first * (15 + 3 * e.classes),
    heading="Which visual tokens can be dropped?",
    method="Tokens are taken out before the first layer; all others keep their positions. Every "
    "set is compared with as many visual tokens drawn at random, from the others where there are "
    "enough. Times are of passes over the prompts of one batch, the conditions in turn.",
    caption="Change without some visual tokens (their share in brackets), with 95 % intervals over "
    "images, beside as many drawn at random; the strip is the margin. Last panel: median and "
    "quartiles of how much faster a pass over the prompts is. " + RUN_OFF,
    findings=_findings,
    claims=_claims,
    data=lambda _: PAPER,
    table=_table,
    by_default=False,
    claims_order=42,
)
register(PRUNING)
