"""The picture of patch compression: answers about single cells, and what their tokens say."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.curves import curve, layer_axis, percent_axis
from ..figures.style import ACCENT, CHANCE, MUTED, SECOND, THIRD, new_figure, style, tidy
from ..select_rows import records, select

_SHOWN = {
    "identity": "what\nit is",
    "color": "its\ncolour",
    "count": "how\nmany",
    "background": "back-\nground",
}


def draw_patch_compression(result: Result) -> Figure:
    """Two panels: right answers by question, and lens hits by layer."""
    with style():
        figure = new_figure(2.9)
        answers, layers = figure.subplots(1, 2)
        _answers(answers, result.frame)
        _layers(layers, select(result.frame, measure="lens hit"))
        drawn = (answers.get_legend_handles_labels(), layers.get_legend_handles_labels())
        handles, names = (first + second for first, second in zip(*drawn, strict=True))
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _answers(axes: Axes, frame: pd.DataFrame) -> None:
    rows = select(frame, measure="accuracy")
    given = select(frame, measure="conditional", given="identity right")
    bias = select(frame, measure="color bias")
    for x, row in enumerate(records(rows)):
        _bar(axes, x, row, ACCENT, "" if x else "right answers")
        named = records(select(given, question=row["question"]))
        for one in named:
            known = "where what it is was right" in axes.get_legend_handles_labels()[1]
            _bar(axes, x + 0.3, one, SECOND, "" if known else "where what it is was right")
        _expected(axes, x, row["expected"], "" if x else "with images exchanged")
    ticks = [_SHOWN[name] for name in rows["question"]]
    for one in records(bias[bias["images"] > 0]):
        _bar(axes, len(rows), one, THIRD, "the background’s colour answered")
        _expected(axes, len(rows), one["expected"], "")
        ticks.append(_SHOWN["color"])
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set(title="a  One thing in one cell", ylabel="images (%)", ylim=(0, 1.04))
    axes.set_xlabel("asked for")
    percent_axis(axes)
    axes.tick_params(axis="x", length=0)
    tidy(axes)


def _bar(axes: Axes, x: float, row: Mapping[str, Any], color: str, label: str) -> None:
    axes.bar(x, row["value"], width=0.28, color=color, label=label)
    if np.isfinite(row["low"]):
        axes.vlines(x, row["low"], row["high"], color="black", linewidth=1.1)


def _expected(axes: Axes, x: float, value: float, label: str) -> None:
    if np.isfinite(value):
        axes.hlines(value, x - 0.2, x + 0.2, color="white", linewidth=2.8)
        axes.hlines(value, x - 0.2, x + 0.2, color=MUTED, linewidth=1.4, label=label)


def _layers(axes: Axes, rows: pd.DataFrame) -> None:
    cell = select(rows, tokens="cell")
    curve(axes, cell, ACCENT, label="the token of the cell")
    for name, color in (("neighbours", SECOND), ("others", THIRD)):
        mine = select(rows, tokens=name)
        if mine["value"].notna().any():
            curve(axes, mine, color, label="tokens beside it" if name != "others" else "any others")
    axes.plot(cell["layer"], cell["expected"], **CHANCE)
    layer_axis(axes, cell["layer"])
    axes.set(title="b  Read as what is in the cell", ylim=(0, 1.04))
    percent_axis(axes)
    tidy(axes)
