"""The picture of a comparison: every condition's change with its interval, measure by measure."""

import textwrap
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.style import ACCENT, INK, MUTED, SECOND, new_figure, style, tidy
from ..select_rows import one, select
from .axis_of_changes import changes_in_sight
from .measure_names import axis_label
from .named_plans import UNTOUCHED
from .paired_table import METRICS

_WIDEST = 26  # characters of a condition's name in one line
_MOST = 36  # conditions that fit on a page
_LINE = 0.155  # inches


def draw_comparison(result: Result) -> Figure:
    """A forest plot: conditions down, a panel for each measure, the margin as a strip."""
    rows = select(result.frame, task="all")
    rows = rows[rows["condition"] != UNTOUCHED]
    metrics = list(dict.fromkeys(rows["metric"]))
    conditions = list(dict.fromkeys(rows["condition"]))[:_MOST]
    names = [textwrap.fill(name, _WIDEST) for name in conditions]
    lines = sum(1.4 + name.count("\n") for name in names)
    controlled = bool(rows["control"].notna().any())
    with style():
        figure = new_figure(min(9.8, max(2.0, 1.25 + _LINE * lines + 0.2 * controlled)))
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for letter, axes, metric in zip("abcd", panels, metrics, strict=False):
            _panel(axes, select(rows, metric=metric), conditions, result.meta["margins"][metric])
            axes.set_title(letter)
            axes.set_xlabel(axis_label(result, metric))
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        if controlled:
            figure.legend(
                *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2
            )
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, conditions: Sequence[str], margin: float) -> None:
    metric = METRICS[rows["metric"].iloc[0]]
    axes.axvspan(
        -metric.factor * margin if metric.own else 0,
        metric.factor * margin,
        color=MUTED,
        alpha=0.15,
        linewidth=0,
    )
    axes.axvline(0, color=INK, linewidth=0.8)
    for y, condition in enumerate(conditions):
        row = one(rows, condition=condition)
        low, high = (metric.factor * row[f"difference_{end}"] for end in ("low", "high"))
        if low == low:
            axes.hlines(y, low, high, color=ACCENT, linewidth=1.2)
        label = "plan" if not y else ""
        axes.plot(metric.factor * row["difference"], y, "o", color=ACCENT, label=label)
        if row["control"] == row["control"]:
            # The control's own change: the condition's, less what it is beyond the control.
            at = metric.factor * (row["difference"] - row["beyond"])
            first = not axes.get_legend_handles_labels()[1].count("control (mean of seeds)")
            axes.plot(
                *(at, y),
                "D",
                markerfacecolor="white",
                color=SECOND,
                label="control (mean of seeds)" if first else "",
            )
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.margins(x=0.08)
    changes_in_sight(axes, "x", rows, margin)
    tidy(axes, grid="x")
