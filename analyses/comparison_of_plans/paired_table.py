"""Per-example outcomes as a table: values, changes with intervals, tests and verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..asked_questions import Questions
from ..statistics import (
    Estimate,
    Evidence,
    Region,
    bootstrap_mean,
    evidence_of_many,
    holm,
    paired_difference,
    paired_test,
    proportion,
)
from .named_plans import UNTOUCHED, NamedPlans

Values = Float[np.ndarray, "example condition"]
Groups = Int[np.ndarray, " example"]


@dataclass(frozen=True)
class Metric:
    """One measure of an answer.

    Attributes:
        margin: A change up to this counts as none.
        own: Whether the untouched model has a value of its own, so that changes go both ways;
            otherwise the measure is itself a distance to the untouched model.
        binary: Whether an example's value is 0 or 1.
        limits: What a mean cannot pass.
        label: What changes, with its unit, in two lines on an axis.
        factor: From the value to that unit.
    """

    margin: float
    own: bool
    binary: bool
    limits: tuple[float, float]
    label: str
    factor: float = 1.0

    def value(self, values: Values, groups: Groups, seed: int, **more: Any) -> Estimate:
        """The mean of each condition."""
        if self.binary:
            return proportion(values, groups, **more)
        found = bootstrap_mean(values, groups, seed=seed, **more)
        least, most = self.limits
        return Estimate(found.value, np.maximum(found.low, least), np.minimum(found.high, most))

    def change(
        self, values: Values, clean: Values, groups: Groups, seed: int, **more: Any
    ) -> Estimate:
        """Each condition against the untouched model, paired."""
        if not self.own:
            return self.value(values, groups, seed, **more)
        if self.binary:
            return paired_difference(values, clean, groups, **more)
        return bootstrap_mean(values - clean, groups, seed=seed, **more)

    def beyond(self, difference: Values, groups: Groups, seed: int) -> Estimate:
        """Each condition against its control, paired."""
        bounds = (-1.0, 1.0) if self.binary else None
        return bootstrap_mean(difference, groups, bounds=bounds, seed=seed)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(0.05, True, True, (0.0, 1.0), "accuracy:\nchange (points)", 100.0),
    "logprob": Metric(0.1, True, False, (-inf, 0.0), "log-probability:\nchange (nats)"),
    "kl": Metric(0.1, False, False, (0.0, inf), "KL to the\nuntouched (nats)"),
    "flips": Metric(0.05, False, True, (0.0, 1.0), "answers that\nchange (%)", 100.0),
}


def paired_table(
    values: Mapping[str, Float[np.ndarray, "plan example"]],
    named: NamedPlans,
    questions: Questions,
    margins: Mapping[str, float],
    seed: int,
) -> pd.DataFrame:
    """One row per task × condition × measure; columns as :func:`compare` says."""
    several = questions.tasks if len(questions.tasks) > 1 else []
    frame = pd.DataFrame(
        [
            row
            for task in ("all", *several)
            for name, of_plans in values.items()
            for row in _rows(task, name, of_plans, named, questions, margins[name], seed)
        ]
    )
    # All conditions and measures are one family; the tasks, which ask in detail, another.
    overall = frame["task"] == "all"
    for p in ("p", "verdict_p", "control_p"):
        for family in (overall, ~overall):
            frame.loc[family, f"{p}_holm"] = holm(frame.loc[family, p].tolist())
    records: list[dict[Any, Any]] = frame.to_dict("records")
    frame["verdict"] = [
        None
        if row["condition"] == UNTOUCHED
        else Evidence.from_row(row).verdict(float(row["verdict_p_holm"]))
        for row in records
    ]
    return frame.drop(columns=["verdict_p"])


def _rows(
    task: str,
    name: str,
    of_plans: Float[np.ndarray, "plan example"],
    named: NamedPlans,
    questions: Questions,
    margin: float,
    seed: int,
) -> list[dict[str, object]]:
    metric, here = METRICS[name], questions.first(task)
    groups, images = questions.groups(here), questions.images(here)
    plans = np.array([0, *named.of.values()])
    values = of_plans[plans][:, here].T
    clean = np.broadcast_to(values[:, :1], values.shape)
    both = values[:, 1:], clean[:, 1:]
    found = evidence_of_many(
        lambda level, times: metric.change(*both, groups, seed, level=level, times=times),
        Region(low=-margin, high=margin),
        np.full(len(named.of), float(len(set(groups.tolist())))),
    )
    value = metric.value(values, groups, seed)
    changed = metric.change(*both, groups, seed)
    p = paired_test(values - clean, groups, seed=seed) if metric.own else np.full(len(plans), nan)
    control = _controls(of_plans, named)[:, here].T
    beyond = metric.beyond(values[:, 1:] - control, groups, seed)
    control_p = paired_test(values[:, 1:] - control, groups, seed=seed)
    known = ~np.isnan(values).all(1)
    rows: list[dict[str, object]] = []
    for c, condition in enumerate([UNTOUCHED, *named.of]):
        if not c and not metric.own:
            continue
        row: dict[str, object] = {"condition": condition, "metric": name, "task": task}
        row |= value.row(c, name="value")
        if c:
            row |= {**changed.row(c - 1, name="difference"), "p": float(p[c])}
            row |= {**found[c - 1].row(), "verdict_p": found[c - 1].p}
            row["control"] = float(np.mean(control[:, c - 1])) if len(control) else nan
            row |= {**beyond.row(c - 1, name="beyond"), "control_p": float(control_p[c - 1])}
        rows.append({**row, "examples": int(known.sum()), "images": images})
    return rows


def _controls(
    of_plans: Float[np.ndarray, "plan example"], named: NamedPlans
) -> Float[np.ndarray, "condition example"]:
    """Each condition's control: the mean of its plans, by example; NaN where it has none."""
    nothing = np.full(of_plans.shape[1], nan)
    return np.stack(
        [
            of_plans[list(named.controls[name])].mean(0) if name in named.controls else nothing
            for name in named.of
        ]
    )
