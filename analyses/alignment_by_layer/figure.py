"""The picture of alignment: cosine and norm against the text states of every layer."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from ..analysis import Result
from ..figures.curves import curve, layer_axis
from ..figures.style import ACCENT, CHANCE, MUTED, SECOND, THIRD, new_figure, style, tidy
from ..rows import one, select

_COLORS = {"entry": ACCENT, "same layer": SECOND}


def draw_alignment(result: Result) -> Figure:
    """Three panels: raw and centred cosines with their chance level, and norms."""
    frame = result.frame
    with style():
        figure = new_figure(3.0)
        raw, centred, norms = figure.subplots(1, 3)
        _cosines(raw, frame, centred=False)
        raw.set(title="a  Direction, raw", ylabel="largest cosine to a text state")
        _cosines(centred, frame, centred=True)
        centred.set(title="b  Direction, centred")
        top = max(raw.get_ylim()[1], centred.get_ylim()[1])
        for axes in (raw, centred):
            axes.set_ylim(0, top)
        _norms(norms, frame)
        handles, names = raw.get_legend_handles_labels()
        more, more_names = norms.get_legend_handles_labels()
        figure.legend(handles + more, names + more_names, loc="outside lower center", ncols=3)
    return figure


def _cosines(axes: Axes, frame: pd.DataFrame, *, centred: bool) -> None:
    chosen = select(frame, centred=centred)
    for comparison, color in _COLORS.items():
        rows = select(chosen, comparison=comparison, measure="cosine")
        own = select(rows, states="visual")
        label = {"entry": "visual tokens at entry", "same layer": "visual states, same layer"}
        curve(axes, own, color, label=label[comparison])
        peak = int(one(chosen, comparison=comparison, measure="peak layer")["value"])
        axes.plot(
            peak,
            one(own, layer=peak)["value"],
            "o",
            markersize=9,
            markerfacecolor="none",
            markeredgecolor=color,
            markeredgewidth=1.2,
            label="peak" if comparison == "entry" else None,
        )
    chance = select(rows, states="random")
    axes.plot(chance["layer"].astype(int), chance["value"], label="random vectors", **CHANCE)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    layer_axis(axes, frame["layer"])
    tidy(axes)


def _norms(axes: Axes, frame: pd.DataFrame) -> None:
    rows = select(frame, measure="norm")
    for side, color, label in (("visual", SECOND, None), ("text", THIRD, "text states")):
        curve(axes, select(rows, states=side), color, label=label)
    entry = select(rows, states="entry")
    axes.plot(entry["layer"].astype(int), entry["value"], color=ACCENT, linewidth=1.2)
    matched = one(frame, measure="norm-matched layer")["value"]
    axes.axvline(matched, color=MUTED, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title="c  Norm", ylabel="median L2 norm (log scale)")
    layer_axis(axes, frame["layer"])
    tidy(axes)
    axes.plot([], [], color=MUTED, linewidth=0.8, linestyle=":", label="norm-matched layer")
