"""The picture of the partition: whether there are clusters, who is a sink, and where sinks turn."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.style import ACCENT, CHANCE, MUTED, SECOND, new_figure, style, tidy
from ..select_rows import select


def draw_partition(result: Result) -> Figure:
    """Three panels: silhouettes, shares of the criteria, cosine to the first token."""
    frame = result.frame
    with style():
        figure = new_figure(4.6)
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.2))
        _silhouettes(figure.add_subplot(grid[0, 0]), frame)
        _shares(figure.add_subplot(grid[0, 1]), frame)
        _turns(figure.add_subplot(grid[1, :]), frame)
    return figure


def _silhouettes(axes: Axes, frame: pd.DataFrame) -> None:
    rows = select(frame, measure="silhouette")
    tokens, cloud = (select(rows, name=name) for name in ("tokens", "cloud"))
    axes.plot(tokens["clusters"].astype(int), tokens["value"], "o-", color=ACCENT, label="tokens")
    axes.plot(cloud["clusters"].astype(int), cloud["value"], label="no clusters", **CHANCE)
    axes.set_xticks(sorted(rows["clusters"].astype(int).unique()))
    axes.set(title="a  Clusters", xlabel="number of clusters", ylabel="mean silhouette")
    tidy(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2)


def _shares(axes: Axes, frame: pd.DataFrame) -> None:
    rows = select(frame, measure="share").reset_index(drop=True)
    for y, row in enumerate(rows.to_dict("records")):
        value = 100 * row["value"]
        axes.barh(y, value, color=ACCENT, height=0.58)
        if not np.isnan(row["low"]):
            axes.hlines(y, 100 * row["low"], 100 * row["high"], color="black", linewidth=1.1)
    axes.set_yticks(range(len(rows)), list(rows["name"]))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.set(title="b  Sinks and classes by criterion", xlabel="share of tokens (%)")
    tidy(axes, grid="x")


def _turns(axes: Axes, frame: pd.DataFrame) -> None:
    rows = select(frame, measure="cosine")
    ticks: dict[float, str] = {}
    for name, color in (("turning", SECOND), ("others", MUTED)):
        called = "tokens that turn" if name == "turning" else "other tokens"
        found = select(rows, name=name)
        if found.empty:
            continue
        behind = found["part"].map({"attention": 0.5}).fillna(1.0).astype(float)
        at = found["layer"].astype(float) + behind
        axes.fill_between(at, found["low"], found["high"], color=color, alpha=0.2, linewidth=0)
        axes.plot(at, found["value"], "o-", color=color, label=called, markersize=3)
        ticks |= {x: str(int(x)) for x in at if x == int(x)}
    shown = sorted(ticks)[:: max(1, len(ticks) // 12)]
    axes.set_xticks(shown, [ticks[x] for x in shown])
    axes.set(
        title="c  Turn to the first token",
        xlabel="layers passed (halves: behind attention)",
        ylabel="cosine to first token",
    )
    # As many ticks at any height: more would have wider labels than the layout left room for.
    axes.locator_params(axis="y", nbins=5)
    tidy(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=2)
