"""The first layer's updates as rows of a table: values, changes, and what a control shows."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..asked_questions import Questions
from ..comparison_of_plans.named_plans import UNTOUCHED
from ..statistics import (
    Estimate,
    Evidence,
    Region,
    bootstrap_mean,
    evidence_of_many,
    holm,
    paired_test,
)
from ..sweep_over_layers.condition import PlacedPlan
from .first_updates import MEASURES, TEXT, FirstUpdates

UNSCALED = "× 1"
NEARNESS = "distance to text"
"""How far the cosine to the entry is from the text's: what a text-like update makes smaller."""

_BOUNDS = {"cosine to entry": (-1.0, 1.0), "update direction": (-1.0, 1.0), NEARNESS: (0.0, 2.0)}

Values = Float[np.ndarray, "condition example"]


def update_rows(
    conditions: Sequence[PlacedPlan],
    updates: FirstUpdates,
    controls: Mapping[str, Sequence[int]],
    questions: Questions,
    seed: int,
) -> pd.DataFrame:
    """Rows of every condition, of its tokens untouched, and of the text.

    Args:
        conditions: Whose plans are the first of ``updates``.
        updates: Of these plans, and of the controls behind them.
        controls: The numbers of the controls of a condition, by its name.
        questions: A question that is asked again counts once, and images are groups.
        seed: Of intervals and tests.
    """
    here = questions.first("all")
    groups, images = questions.groups(here), questions.images(here)
    counts = {"task": "all", "examples": int(here.sum()), "images": images}
    rows: list[dict[str, object]] = []
    for name in (*MEASURES, NEARNESS):
        scaled, entering, text = _values(updates, name)
        n = len(conditions)
        change = scaled - entering
        control = np.stack([_control(change, controls.get(c.name, ())) for c in conditions])
        own, before, change, control = (
            each[:, here].T for each in (scaled[:n], entering[:n], change[:n], control)
        )
        bounds = _BOUNDS.get(name)
        value = bootstrap_mean(own, groups, bounds=bounds, seed=seed)
        changed = bootstrap_mean(change, groups, seed=seed)
        beyond = bootstrap_mean(change - control, groups, seed=seed)
        mean_control = bootstrap_mean(control, groups, seed=seed).value
        p = paired_test(change, groups, seed=seed)
        control_p = paired_test(change - control, groups, seed=seed)
        first_of: dict[str, int] = {}
        for i, condition in enumerate(conditions):
            first_of.setdefault(str(condition.about["tokens"]), i)
        unscaled = np.concatenate([before[:, [*first_of.values()]], text[None, here].T], axis=1)
        known = bootstrap_mean(unscaled, groups, bounds=bounds, seed=seed)
        for i, tokens in enumerate([*first_of, TEXT]):
            rows.append(
                {
                    "condition": UNTOUCHED,
                    "tokens": tokens,
                    "scale": UNSCALED,
                    "factor": 1.0,
                    "metric": name,
                    **counts,
                    **known.row(i, name="value"),
                }
            )
        evidence: list[dict[str, float]] = [{} for _ in conditions]
        if name == NEARNESS:
            evidence = [one.row() for one in _nearer(change, groups, seed)]
        for i, condition in enumerate(conditions):
            rows.append(
                {
                    "condition": condition.name,
                    **condition.about,
                    **condition.saved,
                    "metric": name,
                    **counts,
                    **value.row(i, name="value"),
                    **changed.row(i, name="difference"),
                    "p": float(p[i]),
                    **evidence[i],
                    "control": float(mean_control[i]),
                    **beyond.row(i, name="beyond"),
                    "control_p": float(control_p[i]),
                }
            )
    frame = pd.DataFrame(rows)
    for column in ("p", "control_p"):
        frame[f"{column}_holm"] = nan
        for _, of in frame.groupby(["metric", "tokens"], sort=False):
            frame.loc[of.index, f"{column}_holm"] = holm(of[column].tolist())
    return frame


def _values(updates: FirstUpdates, name: str) -> tuple[Values, Values, Float[np.ndarray, " e"]]:
    """Scaled, untouched, and the text's."""
    if name != NEARNESS:
        return updates.scaled[name], updates.entering[name], updates.text[name]
    scaled, entering, text = _values(updates, "cosine to entry")
    return abs(scaled - text), abs(entering - text), np.zeros_like(text)


def _nearer(
    change: Float[np.ndarray, "example condition"], groups: Int[np.ndarray, " example"], seed: int
) -> list[Evidence]:
    """What speaks for it that a distance has become smaller."""

    def interval(level: Any, times: int) -> Estimate:
        return bootstrap_mean(change, groups, seed=seed, level=level, times=times)

    images = np.full(change.shape[1], float(len(set(groups.tolist()))))
    return evidence_of_many(interval, Region(high=0.0), images)


def _control(change: Values, numbers: Sequence[int]) -> Float[np.ndarray, " example"]:
    """The mean change of a condition's controls; NaN where it has none."""
    if not numbers:
        return np.full(change.shape[1], nan)
    mean: Float[np.ndarray, " example"] = change[list(numbers)].mean(0)
    return mean
