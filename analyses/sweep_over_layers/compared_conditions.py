"""Conditions compared with the untouched model and with their controls, as one tidy table."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ...lens.errors import InputError
from ...lens.model import VisualLM
from ...lens.progress import Progress
from ..analysis import Result
from ..comparison_of_plans import compare
from ..comparison_of_plans.named_plans import UNTOUCHED
from ..example import Example
from ..statistics import Evidence, holm
from .condition import AskedTokens, PlacedPlan

METRICS = ("accuracy", "logprob", "kl", "flips")


def compare_conditions(
    name: str,
    model: VisualLM,
    examples: Sequence[Example],
    conditions: Sequence[PlacedPlan],
    asked: AskedTokens,
    *,
    family: Sequence[str],
    metrics: Sequence[str],
    margins: Mapping[str, float] | None,
    max_new_tokens: int,
    seed: int,
    progress: Progress,
    **settings: Any,
) -> Result:
    """The conditions as `compare` measures them, with what they are about as columns.

    Args:
        name: Of the result.
        model: The model.
        examples: The questions that ``asked`` is about.
        conditions: At least one, no two about the same.
        asked: The tokens of the questions.
        family: Columns; conditions that have the same values there are corrected together, by
            measure, and their tasks together by themselves. A curve is a family: what is asked of
            it is where it changes.
        metrics: What is measured.
        margins: As for `compare`.
        max_new_tokens: As for `compare`.
        seed: Of the intervals and tests.
        progress: Called with the plans that are done.
        settings: What else the record is to hold.

    Raises:
        InputError: No condition, or two about the same.
    """
    by_name = {condition.name: condition for condition in conditions}
    if not by_name:
        raise InputError("there is nothing to compare: no condition can be carried out here")
    if len(by_name) < len(conditions):
        raise InputError("two conditions are about the same: name every set and layer once")
    found = compare(
        model,
        examples,
        {name: condition.plan for name, condition in by_name.items()},
        metrics=metrics,
        controls={n: c.controls for n, c in by_name.items() if c.controls},
        label=asked.label,
        margins=margins,
        batch_size=asked.batch_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=progress,
    )
    frame = pd.concat([about(found.frame, by_name), found.frame], axis=1)
    correct(frame, family)
    return Result(name, frame, found.tensors, {**found.meta, **settings})


def about(frame: pd.DataFrame, conditions: Mapping[str, PlacedPlan]) -> pd.DataFrame:
    """What every row's condition is about, column by column; missing for the untouched model."""
    told = {name: {**one.about, **one.saved} for name, one in conditions.items()}
    columns = list(dict.fromkeys(c for one in told.values() for c in one))
    rows = [told.get(name, {}) for name in frame["condition"]]
    table = pd.DataFrame(rows, columns=columns, index=frame.index)
    for column in columns:
        given = [one.get(column) for one in told.values()]
        if all(value is None or isinstance(value, int) for value in given):
            table[column] = table[column].astype("Int64")
    return table


def correct(frame: pd.DataFrame, family: Sequence[str]) -> None:
    """Correct the tests of each family by themselves (Holm), and judge by that."""
    records: list[dict[Any, Any]] = frame.to_dict("records")
    evidence = {
        i: Evidence.from_row(row)
        for i, row in zip(frame.index, records, strict=True)
        if row["condition"] != UNTOUCHED
    }
    frame["verdict_p_holm"] = pd.Series({i: one.p for i, one in evidence.items()})
    frame["p_holm"], frame["control_p_holm"] = frame["p"], frame["control_p"]
    keys = ["metric", frame["task"] == "all", *family]
    for _, rows in frame.groupby(keys, sort=False, dropna=False):
        for column in ("p_holm", "verdict_p_holm", "control_p_holm"):
            frame.loc[rows.index, column] = holm(rows[column].tolist())
    for i, one in evidence.items():
        frame.loc[i, "verdict"] = one.verdict(float(frame.loc[i, "verdict_p_holm"]))
