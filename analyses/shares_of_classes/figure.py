"""The picture of sparsity: shares of the classes, and what sets them apart."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.curves import curve, layer_axis
from ..figures.style import CLASS_COLORS, MUTED, new_figure, style, tidy
from ..select_rows import one, select

_ORDER = ("alive", "dead", "sink")


def draw_sparsity(result: Result) -> Figure:
    """Four panels: shares, norms, similarity across images, stability across layers."""
    frame = result.frame
    with style():
        figure = new_figure(4.9)
        shares, norms, cosines, stability = figure.subplots(2, 2).ravel()
        _bars(shares, frame, "share", percent=True)
        shares.set(title="a  Share of visual tokens", xlabel="share of tokens (%)", xlim=(0, 100))
        _bars(norms, frame, "norm")
        norms.set(title="b  Norm at the entry", xlabel="mean L2 norm")
        _similarity(cosines, frame)
        _stability(stability, frame)
    return figure


def _bars(axes: Axes, frame: pd.DataFrame, measure: str, *, percent: bool = False) -> None:
    scale = 100.0 if percent else 1.0
    for y, name in enumerate(_ORDER):
        row = one(frame, **{"measure": measure, "class": name})
        if row["images"] == 0:
            _none_found(axes, y)
            continue
        value = row["value"] * scale
        axes.barh(y, value, color=CLASS_COLORS[name], height=0.58)
        end = _whisker(axes, row["low"] * scale, row["high"] * scale, y, value)
        text = f"{value:.1f} %" if percent else f"{value:.1f}"
        inside = percent and value > 70
        axes.annotate(
            text,
            (value / 2 if inside else end, y),
            xytext=(0 if inside else 5, 0),
            textcoords="offset points",
            ha="center" if inside else "left",
            va="center",
            color="white" if inside else "black",
        )
    _classes_on(axes)
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    tidy(axes, grid="x")


def _whisker(axes: Axes, low: float, high: float, y: float, value: float) -> float:
    if np.isnan(low):
        return value
    axes.hlines(y, low, high, color="black", linewidth=1.1)
    return max(value, high)


def _none_found(axes: Axes, y: int) -> None:
    axes.annotate(
        "none found",
        (0, y),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=MUTED,
        style="italic",
    )


def _classes_on(axes: Axes) -> None:
    axes.set_yticks(range(len(_ORDER)), _ORDER)
    axes.set_ylim(len(_ORDER) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _similarity(axes: Axes, frame: pd.DataFrame) -> None:
    measures = {"cosine of class means": ("D", "class means"), "cosine of tokens": ("o", "tokens")}
    for offset, (measure, (marker, label)) in zip((-0.16, 0.16), measures.items(), strict=True):
        for y, name in enumerate(_ORDER):
            row = one(frame, **{"measure": measure, "class": name})
            if np.isnan(row["value"]):
                if offset < 0:
                    _none_found(axes, y)
                continue
            _whisker(axes, row["low"], row["high"], y + offset, row["value"])
            axes.plot(row["value"], y + offset, marker, color=CLASS_COLORS[name], markersize=6)
        axes.plot([], [], marker, color=MUTED, label=label, markersize=6)
    _classes_on(axes)
    low = select(frame, measure="cosine of tokens")["low"].min()
    axes.set_xlim(min(0.0, 1.15 * low) if low < 0 else 0.0, 1.03)
    axes.set(title="c  Similarity between images", xlabel="cosine, mean over image pairs")
    tidy(axes, grid="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, handletextpad=0.2)


def _stability(axes: Axes, frame: pd.DataFrame) -> None:
    rows = select(frame, measure="stability")
    for name in _ORDER:
        found = rows[(rows["class"] == name) & (rows["images"] > 0)]
        if not found.empty:
            curve(axes, found, CLASS_COLORS[name], label=name)
    axes.set_ylim(top=1.02)
    layer_axis(axes, rows["layer"], "layer l")
    axes.set(title="d  Stability across layers", ylabel="cosine of hˡ and hˡ⁺¹")
    tidy(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
