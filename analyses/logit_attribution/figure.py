"""The picture of a logit's parts: by layer, by head, and what heads bring from visual tokens."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.curves import layer_axis
from ..figures.heatmap import heatmap
from ..figures.style import ACCENT, INK, MUTED, SECOND, new_figure, style, tidy

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
            axes.set_title(title)
    return figure


def _sublayers(axes: Axes, frame: pd.DataFrame, tokens: int) -> None:
    for parts, color, label, side in (
        (_ATTENTION, ACCENT, "attention", -0.2),
        (("ffn",), SECOND, "FFN", 0.2),
    ):
        summed = frame[frame["part"].isin(parts)].groupby("layer")["value"].sum() / tokens
        layers = summed.index.to_numpy(dtype=float)
        axes.bar(layers + side, summed.to_numpy(), width=0.4, color=color, label=label)
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
