"""Means with intervals, and differences to controls with corrected tests, of a study's table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..select_rows import select
from ..statistics import Estimate, bootstrap_mean, holm, paired_difference, paired_test, proportion
from .condition_grid import StudyCondition

ALL = "all"
Values = Float[np.ndarray, "condition item"]
_ORDER = (
    *("measure", "group", "value", "low", "high", "n", "images", "missing", "against"),
    *("difference", "difference_low", "difference_high", "pairs", "p", "p_corrected"),
)


def summary(
    frame: pd.DataFrame,
    conditions: Mapping[str, Sequence[StudyCondition]],
    measures: Mapping[str, Mapping[str, Any]],
    seed: int = 0,
) -> pd.DataFrame:
    """The numbers of a study's report.

    Intervals are over images (docs/statistics.md). A condition is compared with its control item by
    item; with a control of several members (such as seeds) by their mean. Tests are corrected
    (Holm) for all comparisons of the study over all items together, and for all of its comparisons
    within groups together.

    Args:
        frame: A study's table.
        conditions: Of every model, by what it is called.
        measures: Per measure whether it is a ``share`` (0 or 1) and its ``bounds``.
        seed: Of resampling.

    Returns:
        One row per model, condition, measure and group: model, condition, family, a column for each
        variable, measure, group, value, low, high, n (numbers), images, missing (numbers that
        could not be computed or are not there yet), against (the control; missing for none),
        difference, difference_low, difference_high, pairs (items with both numbers), p,
        p_corrected.
    """
    variables = dict.fromkeys(v for listed in conditions.values() for c in listed for v in c.values)
    rows = []
    for model, listed in conditions.items():
        for measure, told in measures.items():
            here = select(frame, model=model, measure=measure)
            if len(here):
                for index, row in _rows(here, listed, told, seed):
                    about = listed[index]
                    start: dict[str, str | None] = {"model": model, "condition": about.name}
                    start |= {"family": about.family}
                    start |= {v: _shown(about.values.get(v)) for v in variables}
                    rows.append({**start, "measure": measure, **row})
    made = pd.DataFrame(rows, columns=["model", "condition", "family", *variables, *_ORDER])
    for whole in (True, False):
        family = (made["group"] == ALL) == whole
        made.loc[family, "p_corrected"] = holm(made.loc[family, "p"].astype(float).tolist())
    return made.astype(dict.fromkeys(("p", "p_corrected"), float))


def _rows(
    frame: pd.DataFrame, listed: Sequence[StudyCondition], told: Mapping[str, Any], seed: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of one measure on one model, each with the number of its condition."""
    items = frame.drop_duplicates("item").set_index("item").sort_index()
    number = {condition.name: i for i, condition in enumerate(listed)}
    values = np.full((len(listed), len(items)), np.nan)
    at = items.index.get_indexer(pd.Index(frame["item"]))
    values[frame["condition"].map(number).to_numpy(dtype=int), at] = frame["value"].to_numpy()
    images = items["image"].to_numpy()
    groups = list(dict.fromkeys(items["group"].dropna()))
    parts = {ALL: np.ones(len(items), dtype=bool)}
    if len(groups) > 1:
        parts |= {group: (items["group"] == group).to_numpy() for group in groups}
    for index, condition in enumerate(listed):
        controls = [number[other.name] for other in condition.controls(listed)]
        for group, here in parts.items():
            yield (
                index,
                {
                    "group": group,
                    **_mean(values[index, here], images[here], told, seed),
                    **_difference(values[:, here], index, controls, images[here], told, seed),
                    "against": condition.against if controls else None,
                },
            )


def _mean(
    values: Float[np.ndarray, " item"],
    images: Int[np.ndarray, " item"],
    told: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    if told["share"]:
        found = proportion(values, images)
    else:
        found = bootstrap_mean(_finite(values), images, bounds=_bounds(told), seed=seed)
    seen = ~np.isnan(values)
    counts = {"n": int(seen.sum()), "images": len(np.unique(images[seen]))}
    return {**found.row(), **counts, "missing": int((~seen).sum())}


def _difference(
    values: Values,
    index: int,
    controls: Sequence[int],
    images: Int[np.ndarray, " item"],
    told: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    if not controls:
        nothing = ("difference", "difference_low", "difference_high", "p")
        return {**dict.fromkeys(nothing, np.nan), "pairs": 0}
    own, control = values[index], values[controls].mean(0)
    change = _finite(own) - _finite(control)
    found: Estimate
    if told["share"] and len(controls) == 1:
        found = paired_difference(own, control, images)
    else:
        bounds = _bounds(told)
        widest = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
        found = bootstrap_mean(change, images, bounds=widest, seed=seed)
    return {
        **found.row(name="difference"),
        "pairs": int((~np.isnan(change)).sum()),
        "p": float(paired_test(change, images, seed=seed)),
    }


def _bounds(told: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if told["bounds"] is None else (told["bounds"][0], told["bounds"][1])


def _finite(values: Float[np.ndarray, " item"]) -> Float[np.ndarray, " item"]:
    """Values with what no mean can hold, an answer that is never said, as not observed."""
    return np.where(np.isfinite(values), values, np.nan)


def _shown(value: object) -> str | None:
    return None if value is None else str(value)
