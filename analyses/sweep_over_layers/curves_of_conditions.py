"""The picture of conditions by layer: curves with their bands, controls beside them."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..analysis import Result
from ..comparison_of_plans.axis_of_changes import changes_in_sight
from ..comparison_of_plans.measure_names import axis_label
from ..comparison_of_plans.paired_table import METRICS
from ..figures.curves import layer_axis
from ..figures.style import ACCENT, INK, MUTED, SECOND, THIRD, new_figure, style, tidy
from ..select_rows import select

_COLORS = (ACCENT, SECOND, THIRD, "#E69F00", "#56B4E9")
_BROKEN = (0, (2, 1.5))
Panel = tuple[str, Mapping[str, object]]
"""Its title, and the values of the columns that its rows have."""


def draw_curves(
    result: Result,
    grid: Sequence[Sequence[Panel]],
    *,
    series: str,
    names: Mapping[str, str],
    metrics: Sequence[str],
    x: str = "layer",
    label: str = "layer",
) -> Figure:
    """A grid of panels, a curve for each value of one column, and the control's as a broken line.

    Args:
        result: Of conditions.
        grid: The panels, row by row.
        series: The column of which every value is a curve.
        names: Its values in the order of the colours, and what each is called.
        metrics: The measure of each row of panels.
        x: The column along the horizontal axis, whole numbers.
        label: What that is called.
    """
    rows = select(result.frame, task="all")
    rows = rows[rows[x].notna()]
    height = 0.75 + 1.55 * len(grid)
    with style():
        figure = new_figure(height)
        panels = figure.subplots(
            len(grid), max(map(len, grid)), sharex=True, sharey="row", squeeze=False
        )
        letters = iter("abcdefghijklmnop")
        for line, metric, drawn in zip(grid, metrics, panels, strict=True):
            for j, axes in enumerate(drawn):
                if j >= len(line):
                    axes.remove()
                    continue
                title, where = line[j]
                axes.set_title(f"{next(letters)}  {title}")
                here = select(rows, metric=metric, **where)
                _panel(axes, here, result.meta["margins"][metric], series, names, x)
                layer_axis(axes, rows[x], label if line is grid[-1] else "")
                if j == 0:
                    axes.set_ylabel(axis_label(result, metric))
            shown = pd.concat([select(rows, metric=metric, **where) for _, where in line])
            changes_in_sight(drawn[0], "y", shown, result.meta["margins"][metric])
        handles: list[Artist] = [
            Line2D([], [], color=color, marker="o", label=name)
            for color, (value, name) in zip(_COLORS, names.items(), strict=False)
            if (rows[series] == value).any()
        ]
        if rows["control"].notna().any():
            handles.append(Line2D([], [], color=INK, linestyle=_BROKEN, label="random tokens"))
        handles.append(Patch(color=MUTED, alpha=0.15, label="margin"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _panel(
    axes: Axes,
    rows: pd.DataFrame,
    margin: float,
    series: str,
    names: Mapping[str, str],
    x: str,
) -> None:
    if rows.empty:
        return
    metric = METRICS[rows["metric"].iloc[0]]
    least = -metric.factor * margin if metric.own else 0.0
    axes.axhspan(least, metric.factor * margin, color=MUTED, alpha=0.15, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    for value, color in zip(names, _COLORS, strict=False):
        mine = select(rows, **{series: value}).sort_values(x)
        if mine.empty:
            continue
        at = mine[x].astype(float)
        scaled = {
            column: metric.factor * mine[column]
            for column in ("difference", "difference_low", "difference_high", "beyond")
        }
        axes.fill_between(
            at,
            scaled["difference_low"],
            scaled["difference_high"],
            color=color,
            alpha=0.2,
            linewidth=0,
        )
        axes.plot(at, scaled["difference"], "o-", color=color)
        # The control's own change: the condition's, less what it is beyond the control.
        axes.plot(at, scaled["difference"] - scaled["beyond"], color=color, linestyle=_BROKEN)
    tidy(axes)
