"""The picture of costs: operations, times and memory of every plan beside the untouched model."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.style import ACCENT, INK, MUTED, SECOND, new_figure, style, tidy
from .measure import by_operations, memory


def draw_cost(result: Result) -> Figure:
    """A line for every plan: operations computed, time against operations, and memory."""
    rows = result.frame
    names = list(rows["plan"])
    with style():
        figure = new_figure(1.3 + 0.25 * len(names))
        panels = figure.subplots(1, 3, sharey=True)
        _operations(panels[0], rows)
        _times(panels[1], rows)
        _memory(panels[2], rows)
        for letter, axes in zip("abc", panels, strict=True):
            axes.set_title(letter)
            axes.axvline(1, color=INK, linewidth=0.8)
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(left=0)
            tidy(axes, grid="x")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        pairs = [axes.get_legend_handles_labels() for axes in panels[:2]]
        handles, labels = ([*a, *b] for a, b in zip(*pairs, strict=True))
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return figure


def _operations(axes: Axes, rows: pd.DataFrame) -> None:
    first, places = rows.iloc[0], range(len(rows))
    axes.barh(
        places,
        1 - rows["saved"] / rows["clean"],
        color=MUTED,
        alpha=0.25,
        height=0.7,
        label="needed",
    )
    axes.plot(rows["expected"] / rows["clean"], places, "o", color=ACCENT, label="computed")
    axes.plot(
        rows["counted"] / first["counted"],
        places,
        "D",
        color=SECOND,
        markerfacecolor="none",
        markersize=7,
        label="by torch’s counter",
    )
    axes.set_xlabel("operations of the layers\n/ untouched")


def _times(axes: Axes, rows: pd.DataFrame) -> None:
    places = range(len(rows))
    axes.hlines(places, rows["speed_up_low"], rows["speed_up_high"], color=ACCENT, linewidth=1.2)
    axes.plot(rows["speed_up"], places, "o", color=ACCENT)
    axes.plot(
        by_operations(rows), places, "|", color=INK, markersize=10, label="if operations were time"
    )
    axes.set_xlabel("times as fast")


def _memory(axes: Axes, rows: pd.DataFrame) -> None:
    column, name = memory(rows)
    axes.plot(rows[column] / rows[column].iloc[0], range(len(rows)), "o", color=ACCENT)
    axes.set_xlabel(f"{name}\n/ untouched")
