"""The picture of class profiles: six measures by layer, and the paper's own numbers as lines."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.curves import curve, layer_axis
from ..figures.style import CHANCE, CLASS_COLORS, INK, new_figure, style, tidy
from ..select_rows import select

DEAD_SHARE, SINK_COSINE = 0.08, 0.99
"""Second-hand numbers of the paper: what dead tokens get less of, and how alike sinks are."""

_PANELS = (
    ("cosine between images", "", "Similarity between images", "cosine of class means"),
    ("norm", "", "Norm", "mean L2 norm"),
    ("cosine to first token", "ffn", "Turn to the first token", "cosine behind the FFN"),
    ("update", "layer", "Update", "what a layer adds / norm"),
    ("attention share", "", "Attention from text", "share of visual tokens’"),
    ("state entropy", "", "Variety of states", "entropy / its largest"),
)
_COLORS = {**CLASS_COLORS, "text": INK}


def draw_class_profiles(result: Result) -> Figure:
    """Six panels, a curve for each class and one for the text."""
    with style():
        figure = new_figure(6.6)
        every = figure.subplots(3, 2).ravel()
        for letter, axes, panel in zip("abcdef", every, _PANELS, strict=True):
            _panel(axes, result.frame, letter, *panel)
        named = {
            name: handle
            for axes in every
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend([*named.values()], [*named], loc="outside lower center", ncols=6)
    return figure


def _panel(
    axes: Axes, frame: pd.DataFrame, letter: str, measure: str, part: str, title: str, unit: str
) -> None:
    rows = select(frame, measure=measure)
    if part and part not in set(rows["part"]):
        part = "layer"
    rows = select(rows, part=part)
    for name, color in _COLORS.items():
        found = rows[rows["class"] == name].dropna(subset="value")
        if not found.empty:
            curve(axes, found, color, label=name)
    line = {"cosine between images": SINK_COSINE, "attention share": DEAD_SHARE}.get(measure)
    if line is not None:
        axes.axhline(line, linewidth=1.1, label="paper (second-hand)", **CHANCE)
    if rows.empty:
        axes.annotate("not read in this model", (0.5, 0.5), xycoords="axes fraction", ha="center")
    else:
        layer_axis(axes, rows["layer"], "layer")
    axes.set_xlabel("layer")
    axes.set(title=f"{letter}  {title}", ylabel=unit)
    if measure == "norm" and not rows.empty:
        axes.set_yscale("log")
    tidy(axes)
