"""The picture of an ablation: accuracy against the layers whose output is zeroed."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from ..analysis import Result
from ..asked_questions import OWN_ANSWER
from ..figures.curves import curve, layer_axis, percent_axis
from ..figures.style import ACCENT, CHANCE, INK, MUTED, SECOND, new_figure, style, tidy
from ..select_rows import one, select
from .layer_sets import in_all_layers

_SCOPES = {
    "single": ("In one layer i", "i"),
    "below": ("In layers below m", "m"),
    "above": ("In layers m and above", "m"),
}
_OPERATIONS = {"attention": ("no attention", ACCENT), "ffn": ("no FFN", SECOND)}


def draw_ablation(result: Result) -> Figure:
    """One panel per operation and scope, with the two controls as lines, and one of the tasks."""
    rows = select(result.frame, task="all")
    operations = [name for name in _OPERATIONS if (rows["operation"] == name).any()]
    scopes = [name for name in _SCOPES if (rows["scope"] == name).any()]
    many = len(result.meta["tasks"]) > 1 and {"above", "below"} & set(scopes)
    tasks = result.meta["tasks"] if many else []
    what = "same answer (%)" if result.meta["reference"] == OWN_ANSWER else "exact match (%)"
    below = 0.75 + 0.24 * len(tasks) if tasks else 0.0
    above = 0.8 + 1.6 * len(operations)
    with style():
        figure = new_figure(above + below)
        upper: Figure | SubFigure = figure
        if tasks:
            halves = figure.add_gridspec(2, 1, height_ratios=(above, below))
            upper, lower = (figure.add_subfigure(halves[i]) for i in (0, 1))
        panels = upper.subplots(
            len(operations), len(scopes), sharex=True, sharey=True, squeeze=False
        )
        letters = iter("abcdefg")
        for i, operation in enumerate(operations):
            for j, scope in enumerate(scopes):
                axes = panels[i][j]
                _panel(axes, rows, operation, scope)
                axes.set_title(f"{next(letters)}  {_SCOPES[scope][0]}")
                if i < len(operations) - 1:
                    axes.set_xlabel("")
                if j == 0:
                    axes.set_ylabel(f"{_OPERATIONS[operation][0]}\n{what}")
                else:
                    axes.tick_params(axis="y", length=0)
        handles, names = panels[0][0].get_legend_handles_labels()
        upper.legend(handles, names, loc="outside lower center", ncols=3)
        if tasks:
            axes = lower.subplots()
            _of_tasks(axes, result, operations, tasks, next(letters))
            lower.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _of_tasks(
    axes: Axes, result: Result, operations: Sequence[str], tasks: Sequence[str], letter: str
) -> None:
    """The change of every task without an operation in all layers, below each other."""
    axes.axvspan(-100 * result.meta["margin"], 0, color=MUTED, alpha=0.15, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for i, operation in enumerate(operations):
        label, color = _OPERATIONS[operation]
        rows = in_all_layers(result.frame, operation)
        for y, task in enumerate(tasks):
            row, at = one(rows, task=task), y + (i - (len(operations) - 1) / 2) * 0.3
            ends = (100 * row["difference_low"], 100 * row["difference_high"])
            if ends[0] == ends[0]:
                axes.hlines(at, *ends, color=color, linewidth=1.2)
            axes.plot(100 * row["difference"], at, "o", color=color, label="" if y else label)
    counts = select(result.frame, scope="clean").set_index("task")["examples"]
    axes.set_yticks(range(len(tasks)), [f"{task} ({counts[task]})" for task in tasks])
    axes.set(ylim=(len(tasks) - 0.5, -0.5), xlabel="change in all layers (points)")
    axes.set_title(f"{letter}  By task (number of questions)")
    axes.tick_params(axis="y", length=0)
    tidy(axes, grid="x")


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
