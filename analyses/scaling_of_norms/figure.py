"""The picture of norm scaling: the first layer's update, and what answers lose, over the factor."""

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ..analysis import Result
from ..comparison_of_plans.measure_names import axis_label
from ..comparison_of_plans.named_plans import UNTOUCHED
from ..comparison_of_plans.paired_table import METRICS
from ..figures.style import (
    CHANCE,
    CLASS_COLORS,
    INK,
    MUTED,
    SECOND,
    THIRD,
    new_figure,
    style,
    tidy,
)
from ..select_rows import one, select
from .first_updates import TEXT
from .measure import MATCHED

_UPDATES = {
    "update": "update of layer 0\nover the norm before",
    "cosine to entry": "cosine of layer 0’s\nentry and exit",
}
_REACH = 1.5
"""Of a panel, in largest changes: the band of a heavy-tailed mean may go on outside."""
_OTHERS = ("#E69F00", SECOND, THIRD, "#56B4E9")


def draw_norm_scaling(result: Result) -> Figure:
    """Two measures of the first layer's update, and two of the answers, by the factor."""
    rows = select(result.frame, task="all")
    sets = list(dict.fromkeys(rows.loc[rows["condition"] != UNTOUCHED, "tokens"]))
    others = iter(_OTHERS)
    colors = {
        name: CLASS_COLORS.get(name) or (INK if name == "visual" else next(others, MUTED))
        for name in sets
    }
    margins = result.meta["margins"]
    metrics = list(dict.fromkeys([m for m in ("accuracy", "kl") if m in margins] + [*margins]))[:2]
    with style():
        figure = new_figure(4.4)
        panels = figure.subplots(2, 2, sharex=True)
        for letter, axes, (name, label) in zip("ab", panels[0], _UPDATES.items(), strict=True):
            _updates(axes, select(rows, metric=name), colors)
            axes.set_title(letter)
            axes.set_ylabel(label)
        panels[0][0].set_yscale("log")
        for letter, axes, metric in zip("cd", panels[1], metrics, strict=False):
            _answers(axes, select(rows, metric=metric), colors, margins[metric])
            axes.set_title(letter)
            axes.set_ylabel(axis_label(result, metric))
            axes.set_xlabel("factor α")
        for axes in panels[1][len(metrics) :]:
            axes.remove()
            panels[0][1].tick_params(labelbottom=True)
        panels[0][0].set_xscale("log")
        handles: list[Artist] = [
            Line2D([], [], color=color, marker="o", label=name) for name, color in colors.items()
        ]
        if (rows["scale"] == MATCHED).any():
            handles.append(
                Line2D([], [], color=INK, marker="D", markerfacecolor="white", linestyle="none",
                       label="norm of the text")
            )  # fmt: skip
        if rows["control"].notna().any():
            handles.append(Line2D([], [], color=INK, linestyle=":", label="random tokens"))
        handles += [
            Line2D([], [], label="text", **CHANCE),
            Patch(color=MUTED, alpha=0.15, label="margin"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7))
    return figure


def _updates(axes: Axes, rows: pd.DataFrame, colors: dict[str, str]) -> None:
    axes.axhline(one(rows, tokens=TEXT)["value"], **CHANCE)
    for tokens, color in colors.items():
        _curve(axes, select(rows, tokens=tokens), color, "value", 1.0)
    tidy(axes)


def _answers(axes: Axes, rows: pd.DataFrame, colors: dict[str, str], margin: float) -> None:
    metric = METRICS[rows["metric"].iloc[0]]
    changes = metric.factor * pd.concat([rows["difference"], rows["difference"] - rows["beyond"]])
    reach = max(_REACH * changes.abs().max(), 1.5 * metric.factor * margin)
    axes.set_ylim(
        -reach if metric.own and changes.min() < 0 else -0.1 * reach,
        reach if changes.max() > 0 or not metric.own else 0.25 * reach,
    )
    least = -metric.factor * margin if metric.own else 0.0
    axes.axhspan(least, metric.factor * margin, color=MUTED, alpha=0.15, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    for tokens, color in colors.items():
        mine = select(rows, tokens=tokens)
        _curve(axes, mine, color, "difference", metric.factor)
        swept = mine[mine["scale"] != MATCHED].sort_values("factor")
        # The control's own change: the condition's, less what it is beyond the control.
        control = metric.factor * (swept["difference"] - swept["beyond"])
        axes.plot(swept["factor"], control, ":", color=color)
    tidy(axes)


def _curve(axes: Axes, rows: pd.DataFrame, color: str, column: str, factor: float) -> None:
    """The sweep as a line with its band, and the matched norm as a mark of its own."""
    swept = rows[rows["scale"] != MATCHED].sort_values("factor")
    low, high = (factor * swept[f"{column}_{end}"] for end in ("low", "high"))
    axes.fill_between(swept["factor"], low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(swept["factor"], factor * swept[column], "o-", color=color)
    matched = select(rows, scale=MATCHED)
    axes.plot(
        matched["factor"], factor * matched[column], "D", color=color, markerfacecolor="white"
    )
