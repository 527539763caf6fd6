"""The picture of a study: every condition's value, and its difference to its control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures.style import ACCENT, INK, MUTED, new_figure, printable, style, tidy

MOST_ROWS = 80
"""Conditions of one figure; more could not be read."""
_LONGEST = 44  # characters of a condition's name


def draw_measure(rows: pd.DataFrame, measure: str, told: Mapping[str, Any]) -> Figure:
    """Values and differences with their intervals, one line per condition.

    Filled differences are those whose corrected p is at most .05.

    Args:
        rows: Of a summary: one measure, one model, one group.
        measure: Its title.
        told: About the measure; a ``share`` is drawn in percent.
    """
    scale, unit = (100.0, " (%)") if told["share"] else (1.0, "")
    names = [_short(name) for name in rows["condition"]]
    compared = rows["difference"].notna().any()
    with style():
        figure = new_figure(1.0 + 0.22 * len(rows))
        panels = figure.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]
        left = panels[0]
        values = rows[["value", "low", "high"]].to_numpy(dtype=float) * scale
        _line_per_row(left, values, np.ones(len(rows), dtype=bool))
        left.set_yticks(range(len(rows)), names)
        left.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"{measure}{unit}")
        left.set_title("a  Value")
        if compared:
            right = panels[1]
            columns = ["difference", "difference_low", "difference_high"]
            changes = rows[columns].to_numpy(dtype=float) * scale
            right.axvline(0, color=INK, linewidth=0.8)
            _line_per_row(right, changes, (rows["p_corrected"] <= 0.05).to_numpy())
            right.set(xlabel="difference" + " (points)" * bool(told["share"]))
            right.set_title("b  Compared with its control")
            right.tick_params(axis="y", length=0)
    return figure


def _line_per_row(axes: Axes, rows: np.ndarray, filled: np.ndarray) -> None:
    for y, ((value, low, high), full) in enumerate(zip(rows, filled, strict=True)):
        if np.isnan(value):
            continue
        if not np.isnan(low):
            axes.hlines(y, low, high, color=MUTED, linewidth=1.2)
        axes.plot(value, y, "o", color=ACCENT, markerfacecolor=ACCENT if full else "white")
    axes.tick_params(axis="y", length=0)
    tidy(axes, grid="x")


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
