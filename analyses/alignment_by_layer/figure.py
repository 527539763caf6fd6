"""The picture of alignment: every measure beside the curves of text, and norms."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from ..analysis import Result
from ..figures.curves import curve, layer_axis
from ..figures.style import ACCENT, CHANCE, INK, MUTED, SECOND, THIRD, new_figure, style, tidy
from ..select_rows import one, select
from .answer import answer
from .curves_by_layer import CENTRED, CKA, NEIGHBOURS, RAW, STANDARDISED, Measure

_PANELS = {
    STANDARDISED: ("a  Standardised cosine", "largest, to a text state"),
    RAW: ("b  Raw cosine", "largest, to a text state"),
    CENTRED: ("c  Centred cosine", "largest, to a text state"),
    CKA: ("d  CKA", "linear CKA"),
    NEIGHBOURS: ("e  Mutual neighbours", "share of tokens"),
}
_REFERENCE: dict[str, Any] = {"color": "#B8B8B8", "linewidth": 0.6, "zorder": 1}


def draw_alignment(result: Result) -> Figure:
    """Six panels: five measures with their references and chance levels, and norms."""
    frame = result.frame
    named = answer(frame).kind == "layer"
    with style():
        figure = new_figure(5.0)
        panels = figure.subplots(2, 3).flat
        for measure in _PANELS:
            axes = next(panels)
            _measure(axes, frame, measure, named=named)
            title, label = _PANELS[measure]
            axes.set(title=title, ylabel=label)
        norms = next(panels)
        _norms(norms, frame)
        legend: dict[str, Any] = {}
        for axes in figure.axes:
            handles, names = axes.get_legend_handles_labels()
            legend |= dict(zip(names, handles, strict=True))
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3)
    return figure


def _measure(axes: Axes, frame: pd.DataFrame, measure: Measure, *, named: bool) -> None:
    """One measure: text of every layer in grey, that of the named one dark, tokens in colour."""
    where: dict[str, object] = {"measure": measure.name}
    if measure.centred is not None:
        where["centred"] = measure.centred
    chosen = select(frame, **where)
    entry = select(chosen, comparison="entry")
    references = select(entry, states="reference")
    for number, (_, rows) in enumerate(references.groupby("of_layer")):
        label = None if number else "text of each layer"
        axes.plot(rows["layer"].astype(int), rows["value"], label=label, **_REFERENCE)
    if named:
        by = {"by" if key == "measure" else key: value for key, value in where.items()}
        layer = int(one(frame, **by, measure="nearest layer")["value"])
        rows = select(references, of_layer=layer)
        x = rows["layer"].astype(int)
        axes.plot(x, rows["value"], color=INK, linewidth=1.0, label="text of the nearest layer")
    own, same = (
        select(part, states="visual") for part in (entry, select(chosen, comparison="same layer"))
    )
    curve(axes, own, ACCENT, label="visual tokens at entry")
    curve(axes, same, SECOND, label="visual states, same layer")
    chance = select(entry, states="random")
    x = chance["layer"].astype(int)
    axes.plot(x, chance["value"], label="dimensions shuffled", **CHANCE)
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
    axes.set(title="f  Norm", ylabel="median L2 norm (log scale)")
    layer_axis(axes, frame["layer"])
    tidy(axes)
    axes.plot([], [], color=MUTED, linewidth=0.8, linestyle=":", label="norm-matched layer")
