"""The picture of an ablation: accuracy against the layers whose output is zeroed."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.curves import curve, layer_axis, percent_axis
from ..figures.style import ACCENT, CHANCE, INK, SECOND, new_figure, style, tidy
from ..rows import one, select

_SCOPES = {
    "single": ("In one layer i", "i"),
    "below": ("In layers below m", "m"),
    "above": ("In layers m and above", "m"),
}
_OPERATIONS = {"attention": ("no attention", ACCENT), "ffn": ("no FFN", SECOND)}


def draw_ablation(result: Result) -> Figure:
    """One panel per operation and scope, with the two controls as lines."""
    rows = select(result.frame, task="all")
    operations = [name for name in _OPERATIONS if (rows["operation"] == name).any()]
    scopes = [name for name in _SCOPES if (rows["scope"] == name).any()]
    with style():
        figure = new_figure(0.8 + 1.6 * len(operations))
        panels = figure.subplots(
            len(operations), len(scopes), sharex=True, sharey=True, squeeze=False
        )
        letters = iter("abcdef")
        for i, operation in enumerate(operations):
            for j, scope in enumerate(scopes):
                axes = panels[i][j]
                _panel(axes, rows, operation, scope)
                axes.set_title(f"{next(letters)}  {_SCOPES[scope][0]}")
                if i < len(operations) - 1:
                    axes.set_xlabel("")
                if j == 0:
                    axes.set_ylabel(f"{_OPERATIONS[operation][0]}\nexact match (%)")
                else:
                    axes.tick_params(axis="y", length=0)
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, operation: str, scope: str) -> None:
    color = _OPERATIONS[operation][1]
    clean = one(rows, scope="clean")
    wrong = one(rows, scope="wrong image")
    axes.axhline(clean["accuracy"], color=INK, linewidth=1.0, label="untouched model")
    axes.axhline(wrong["accuracy"], linewidth=1.0, label="wrong image", **CHANCE)
    columns = ("accuracy", "accuracy_low", "accuracy_high")
    curve(axes, select(rows, operation=operation, scope=scope), color, columns=columns)
    axes.set_ylim(-0.02, 1.05)
    percent_axis(axes)
    layer_axis(axes, rows["layer"], _SCOPES[scope][1])
    tidy(axes)
