"""The picture of pruning: what is lost by every set and share, beside how much faster it is."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..comparison_of_plans.axis_of_changes import changes_in_sight
from ..comparison_of_plans.measure_names import axis_label
from ..comparison_of_plans.paired_table import METRICS
from ..figures.style import ACCENT, INK, MUTED, SECOND, new_figure, style, tidy
from ..select_rows import select


def draw_pruning(result: Result) -> Figure:
    """Two measures at most, and the ratio of times, a line for every set and share."""
    rows = select(result.frame, task="all")
    rows = rows[rows["kind"].notna()]
    metrics = [
        m for m in ("accuracy", "kl", *result.meta["margins"]) if m in result.meta["margins"]
    ]
    metrics = list(dict.fromkeys(metrics))[:2]
    names = list(dict.fromkeys(rows["dropped"]))
    shares = rows.drop_duplicates("dropped").set_index("dropped")["share"]
    with style():
        figure = new_figure(1.15 + 0.22 * len(names))
        panels = figure.subplots(1, len(metrics) + 1, sharey=True, squeeze=False)[0]
        for letter, axes, metric in zip("abc", panels, metrics, strict=False):
            _changes(axes, select(rows, metric=metric), result.meta["margins"][metric], names)
            axes.set_title(letter)
            axes.set_xlabel(axis_label(result, metric))
        _times(panels[-1], rows.drop_duplicates("dropped"), names)
        panels[-1].set_title("abc"[len(metrics)])
        panels[0].set_yticks(range(len(names)), [f"{n} ({shares[n]:.0%})" for n in names])
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def _changes(axes: Axes, rows: pd.DataFrame, margin: float, names: list[str]) -> None:
    metric = METRICS[rows["metric"].iloc[0]]
    least = -metric.factor * margin if metric.own else 0.0
    axes.axvspan(least, metric.factor * margin, color=MUTED, alpha=0.15, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for row in rows.to_dict("records"):
        y = names.index(row["dropped"])
        low, value, high = (
            metric.factor * row[column]
            for column in ("difference_low", "difference", "difference_high")
        )
        if np.isfinite(low):
            axes.hlines(y, low, high, color=ACCENT, linewidth=1.2)
        axes.plot(value, y, "o", color=ACCENT, label="" if y else "dropped")
        if np.isfinite(row["beyond"]):
            known = "as many at random" in axes.get_legend_handles_labels()[1]
            axes.plot(
                value - metric.factor * row["beyond"],
                y,
                "D",
                markerfacecolor="white",
                color=SECOND,
                label="" if known else "as many at random",
            )
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    changes_in_sight(axes, "x", rows, margin)
    tidy(axes, grid="x")


def _times(axes: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    axes.axvline(1, color=INK, linewidth=0.8)
    for row in rows.to_dict("records"):
        y = names.index(row["dropped"])
        if np.isfinite(row["speed_up"]):
            axes.hlines(y, row["speed_up_low"], row["speed_up_high"], color=ACCENT, linewidth=1.2)
            axes.plot(row["speed_up"], y, "o", color=ACCENT)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("passes over the prompt:\ntimes as fast")
    tidy(axes, grid="x")
