"""The picture of lens hits: what the lens reads rightly, at the entry and across layers."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..result import Result
from ..rows import one, select
from .style import ACCENT, CHANCE, SECOND, new_figure, style, tidy

_COLORS = {"EmbedLens": ACCENT, "LogitLens": SECOND}


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


def _entry(axes: Axes, result: Result) -> None:
    rows = select(result.frame, layer=0)
    ks = sorted(rows["k"].unique())
    for i, (lens, color) in enumerate(_COLORS.items()):
        for j, k in enumerate(ks):
            x = j + (i - 0.5) * 0.36
            own, chance = (one(rows, lens=lens, k=k, truth=truth) for truth in ("own", "permuted"))
            axes.bar(x, own["value"], width=0.32, color=color)
            if not np.isnan(own["low"]):
                axes.vlines(x, own["low"], own["high"], color="black", linewidth=1.1)
            axes.hlines(chance["value"], x - 0.16, x + 0.16, color="white", linewidth=2.6)
            axes.hlines(chance["value"], x - 0.16, x + 0.16, color="black", linewidth=1.2)
    axes.set_xticks(range(len(ks)), [f"first {k}" for k in ks])
    axes.set(title="a  At the entry", xlabel="words that count")
    axes.set(ylabel="tokens read rightly (%)", ylim=(0, 1.04))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.tick_params(axis="x", length=0)
    tidy(axes)


def _layers(axes: Axes, result: Result) -> None:
    ks = sorted(result.frame["k"].unique())
    k = ks[len(ks) // 2]
    rows = select(result.frame, k=k)
    for lens, color in _COLORS.items():
        own = select(rows, lens=lens, truth="own")
        layer = own["layer"]
        axes.fill_between(layer, own["low"], own["high"], color=color, alpha=0.2, linewidth=0)
        axes.plot(layer, own["value"], "o-", color=color, label=lens)
    for lens, color in _COLORS.items():
        chance = select(rows, lens=lens, truth="permuted")
        axes.plot(
            chance["layer"],
            chance["value"],
            linewidth=1.1,
            label=f"{lens}, permuted truth",
            **{**CHANCE, "color": color},
        )
    layers = sorted(rows["layer"].unique())
    axes.set_xticks(layers[:: max(1, len(layers) // 8)])
    axes.set(
        title=f"b  Across layers, first {k} words",
        xlabel="layer",
        ylim=(0, 1.04),
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    tidy(axes)
