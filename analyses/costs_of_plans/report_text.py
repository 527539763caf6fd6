"""What costs say: whether two counts agree, and where operations that are left out save no time."""

from collections.abc import Mapping
from math import isnan
from typing import Any

import numpy as np
import pandas as pd

from ..analysis import Analysis, Result, register
from ..numbers_in_words import counted, listing, number, percent
from ..report_inputs import Material
from .figure import draw_cost
from .measure import by_operations, cost_of_plans, memory

_SHORT = 0.95
"""Less than that of being as many times as fast is not as fast as operations say."""
_ENOUGH = 1.1
"""A plan that many times as fast by operations is looked at for whether it is faster."""


def _findings(result: Result) -> list[str]:
    rows = result.frame.assign(by_operations=by_operations(result.frame))
    plans = rows.iloc[1:]
    return [
        *_counts(result, rows),
        *_could_be(plans),
        *_times(result, plans),
        *_memory(rows),
        *_reasons(rows),
    ]


def _counts(result: Result, rows: pd.DataFrame) -> list[str]:
    first, meta = rows.iloc[0], result.meta
    batch = f"{counted(meta['samples'], 'prompt')} of {meta['length']} tokens"
    if isnan(first["counted"]):
        return [f"No pass over {batch} could be counted."]
    whole = percent(first["counted"] / first["counted_all"])
    said = [
        f"A pass over {batch} takes {_flops(first['counted'])} in the decoder’s layers by "
        f"torch’s counter, {whole} of those of the whole model."
    ]
    known = rows[rows["expected"].notna()]
    if known.empty:
        return said
    apart = (known["counted"] / known["expected"] - 1).abs()
    worst = known["plan"].iloc[int(apart.to_numpy().argmax())]
    same = int((known["counted"] == known["expected"]).sum())
    said.append(
        f"Our count is torch’s to the last operation in {same} of {counted(len(known), 'case')}"
        + (f"; the farthest is {worst}, by {percent(apart.max())}." if same < len(known) else ".")
    )
    return said


def _could_be(plans: pd.DataFrame) -> list[str]:
    """Plans of which more could be saved than is."""
    more = plans[(plans["saved"] - plans["skipped"]) > 0.01 * plans["clean"]]
    if more.empty:
        return []
    told = listing(
        f"{row['plan']} ({percent(row['skipped'] / row['clean'])} of "
        f"{percent(row['saved'] / row['clean'])})"
        for row in more.to_dict("records")
    )
    return [f"Less is left out here than could be, of the layers’ operations: {told}."]


def _times(result: Result, plans: pd.DataFrame) -> list[str]:
    timed = plans[plans["speed_up"].notna()]
    if timed.empty:
        return ["Nothing was timed."]
    tried = timed[timed["by_operations"] >= _ENOUGH]
    short = tried[tried["speed_up_high"] < _SHORT * tried["by_operations"]]
    runs = f"middle half of {counted(result.meta['repeats'], 'pass').removesuffix('s')}es"
    said = []
    if len(short):
        told = "; ".join(
            f"{row['plan']}, {_ratio(row)} times as fast, where {number(row['by_operations'])} "
            "would be in proportion"
            for row in short.to_dict("records")
        )
        said.append(f"Operations that are left out are not time ({runs}): {told}.")
    if rest := len(tried) - len(short):
        said.append(
            f"Of {counted(len(tried), 'plan')} with a tenth less to compute or more, {rest} are as "
            "much faster as that, or it is not shown that they are not."
        )
    slower = timed[timed["speed_up_high"] < 1]
    if len(slower):
        told = "; ".join(f"{row['plan']}, {_ratio(row)}" for row in slower.to_dict("records"))
        said.append(f"Slower than the untouched model, in times as fast: {told}.")
    return said


def _ratio(row: Mapping[Any, Any]) -> str:
    low, value, high = (number(row[name]) for name in ("speed_up_low", "speed_up", "speed_up_high"))
    return f"{value} ({low} to {high})"


def _memory(rows: pd.DataFrame) -> list[str]:
    column, _ = memory(rows)
    first = rows[column].iloc[0]
    if isnan(first):
        return ["Memory could not be measured: nothing is kept for the tokens to come."]
    least = rows.iloc[int(np.nanargmin(rows[column].to_numpy()))]
    what = (
        "What a pass allocates on the GPU at most is"
        if column == "peak"
        else "What is kept of the prompts for the tokens to come (keys, values) is"
    )
    ends = (
        "no plan makes it less"
        if least[column] == first
        else f"least with {least['plan']}, {percent(least[column] / first)} of that"
    )
    return [f"{what} {_megabytes(first)}; {ends}."]


def _reasons(rows: pd.DataFrame) -> list[str]:
    missing = rows[rows["reason"] != ""]
    return [
        f"Not carried out or not counted, {listing(of['plan'])}: {str(reason).rstrip('.')}."
        for reason, of in missing.groupby("reason", sort=False)
    ]


def _flops(value: float) -> str:
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.2f} {unit}FLOPs"
    return f"{value:.0f} FLOPs"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB"


def _table(result: Result) -> pd.DataFrame:
    rows = result.frame
    first, lines = rows.iloc[0], []
    for row, speed in zip(rows.to_dict("records"), by_operations(rows), strict=True):
        lines.append(
            {
                "Plan": row["plan"],
                "Could be saved": _share(row["saved"], row["clean"]),
                "Left out": _share(row["skipped"], row["clean"]),
                "Added": _share(row["spent"], row["clean"]),
                "Computed, our count": _share(row["expected"], row["clean"]),
                "Computed, torch’s": _share(row["counted"], first["counted"]),
                "Times as fast by operations": "–" if isnan(speed) else number(speed),
                "Times as fast": "–" if isnan(row["speed_up"]) else _ratio(row),
                "Cache": "–" if isnan(row["cache"]) else _megabytes(row["cache"]),
                "Peak on the GPU": "–" if isnan(row["peak"]) else _megabytes(row["peak"]),
            }
        )
    return pd.DataFrame(lines)


def _share(value: float, whole: float) -> str:
    return "–" if isnan(value) or isnan(whole) else percent(value / whole)


def _run(material: Material) -> Result:
    return cost_of_plans(
        material.model, material.batches[0], seed=material.seed, progress=material.progress
    )


COST_OF_PLANS = Analysis(
    name="cost_of_plans",
    run=_run,
    figure=draw_cost,
    doing="measuring what plans cost",
    order=68,
    passes=lambda e: 70 * e.first,
    heading="What do plans cost?",
    method="Operations are counted by formula and by torch’s counter, which watches a pass and "
    "does not know every kernel. Times are of whole passes, encoder included, the plans in turn; "
    "of ratios the median and the middle half are told, which are no intervals of a mean. On a GPU "
    "memory is what a pass allocates at most; anywhere, the bytes that a generation keeps of the "
    "prompts.",
    caption="(a) Operations of the decoder’s layers: needed for the result, computed by our count, "
    "and by torch’s. (b) How many times as fast as the untouched model, with the middle half of "
    "the passes, and what it would be if every operation of the model took as long. (c) Memory.",
    findings=_findings,
    table=_table,
    headline=False,
    by_default=False,
)
register(COST_OF_PLANS)
