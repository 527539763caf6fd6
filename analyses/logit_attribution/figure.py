"""The picture of a logit's parts: by layer, by head, and what heads bring from visual tokens."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.curves import layer_axis
from ..figures.heatmap import heatmap, mark
from ..figures.style import ACCENT, INK, MUTED, SECOND, new_figure, style, tidy
from .parts import SURE, parts_over_images

_ATTENTION = ("attention", "head", "attention bias")


def draw_logit_attribution(result: Result) -> Figure:
    """Means over tokens: what each sublayer adds, and each head, in all and from visual tokens."""
    frame = result.frame
    tokens = len(frame[["sample", "position"]].drop_duplicates())
    heads = frame[frame["part"] == "head"]
    with style():
        figure = new_figure(2.9)
        if heads.empty:
            _sublayers(figure.subplots(), frame, tokens)
            return figure
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        _sublayers(left, frame, tokens)
        for axes, column, title in (
            (middle, "value", "b  By head"),
            (right, "visual", "c  From visual tokens"),
        ):
            summed = heads.groupby(["layer", "head"])[column].sum() / tokens
            matrix = summed.unstack("head").to_numpy(dtype=float)
            heatmap(axes, matrix, unit="logit", rows="layer", columns="head")
            over = parts_over_images(heads, column)
            mark(axes, over["p_corrected"].le(SURE).to_numpy().reshape(-1), _cells(heads, over))
            axes.set_title(title)
    return figure


def _cells(heads: pd.DataFrame, over: pd.DataFrame) -> np.ndarray:
    """Row and column of each head in the map of those that there are."""
    places = [
        over[name].map({n: i for i, n in enumerate(sorted(heads[name].unique()))})
        for name in ("layer", "head")
    ]
    return np.stack([place.to_numpy(dtype=int) for place in places], 1)


def _sublayers(axes: Axes, frame: pd.DataFrame, tokens: int) -> None:
    for parts, color, label, side in (
        (_ATTENTION, ACCENT, "attention", -0.2),
        (("ffn",), SECOND, "FFN", 0.2),
    ):
        mine = frame[frame["part"].isin(parts)]
        if mine.empty:
            continue
        over = parts_over_images(mine, by=["layer"]).sort_values("layer")
        value = over["value"].to_numpy()
        ends = np.abs(over[["low", "high"]].to_numpy().T - value)
        axes.bar(
            over["layer"].to_numpy(dtype=float) + side,
            value,
            width=0.4,
            color=color,
            label=label,
            yerr=None if np.isnan(ends).all() else ends,
            error_kw={"elinewidth": 0.8, "ecolor": INK},
        )
    rest = frame[frame["part"].isin(["embedding", "constant"])]["value"].sum() / tokens
    axes.bar(-1, rest, width=0.6, color=MUTED, label="embedding, biases")
    axes.axhline(0, color=INK, linewidth=0.8)
    layer_axis(axes, frame["layer"])
    axes.set(title="a  By layer", ylabel="share of the logit")
    axes.margins(y=0.1)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    tidy(axes)
