"""The picture of lens hits: what the lens reads rightly, at the entry and across layers."""

from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.curves import curve, layer_axis, percent_axis
from ..figures.style import ACCENT, CHANCE, INK, SECOND, THIRD, new_figure, style, tidy
from ..select_rows import one, select
from .measure import middle_k

_COLORS = (ACCENT, SECOND, THIRD, INK)


def draw_lens_hits(result: Result) -> Figure:
    """Two panels: hits at the entry by number of words, and by layer for the middle number."""
    with style():
        figure = new_figure(2.8)
        entry, layers = figure.subplots(1, 2, width_ratios=(1, 1.35))
        _entry(entry, result)
        _layers(layers, result)
        handles, names = layers.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


def _colors(result: Result) -> dict[str, str]:
    return dict(zip(result.frame["lens"].unique(), cycle(_COLORS), strict=False))


def _entry(axes: Axes, result: Result) -> None:
    rows = select(result.frame, layer=0)
    ks = sorted(rows["k"].unique())
    colors = _colors(result)
    n = len(colors)
    for i, (lens, color) in enumerate(colors.items()):
        for j, k in enumerate(ks):
            x = j + (i - (n - 1) / 2) * 0.72 / n
            own, chance = (one(rows, lens=lens, k=k, truth=truth) for truth in ("own", "permuted"))
            axes.bar(x, own["value"], width=0.64 / n, color=color)
            if not np.isnan(own["low"]):
                axes.vlines(x, own["low"], own["high"], color="black", linewidth=1.1)
            for edge, width in (("white", 2.6), ("black", 1.2)):
                ends = (x - 0.32 / n, x + 0.32 / n)
                axes.hlines(chance["value"], *ends, color=edge, linewidth=width)
    axes.set_xticks(range(len(ks)), [f"first {k}" for k in ks])
    axes.set(title="a  At the entry", xlabel="words that count")
    axes.set(ylabel="tokens read rightly (%)", ylim=(0, 1.04))
    percent_axis(axes)
    axes.tick_params(axis="x", length=0)
    tidy(axes)


def _layers(axes: Axes, result: Result) -> None:
    k = middle_k(result.frame)
    rows = select(result.frame, k=k)
    for lens, color in _colors(result).items():
        curve(axes, select(rows, lens=lens, truth="own"), color, label=lens)
    for lens, color in _colors(result).items():
        chance = select(rows, lens=lens, truth="permuted")
        axes.plot(
            chance["layer"],
            chance["value"],
            linewidth=1.1,
            label=f"{lens}, permuted truth",
            **{**CHANCE, "color": color},
        )
    layer_axis(axes, rows["layer"])
    axes.set(title=f"b  Across layers, first {k} words", ylim=(0, 1.04))
    percent_axis(axes)
    tidy(axes)
