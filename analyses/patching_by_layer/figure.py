"""The picture of patching: the effect by layer and set of tokens."""

import numpy as np
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.heatmap import heatmap, mark
from ..figures.style import new_figure, style


def draw_patching(result: Result) -> Figure:
    """A map: sets of tokens down, layers across."""
    frame = result.frame
    names = list(dict.fromkeys(frame["tokens"]))
    layers = sorted(frame["layer"].unique())
    matrix = frame.pivot(index="tokens", columns="layer", values="effect").loc[names, layers]
    with style():
        figure = new_figure(min(9.5, 1.5 + 0.22 * len(names)))
        axes = figure.subplots()
        heatmap(axes, matrix.to_numpy(), unit="effect", rows="tokens", columns="layer")
        if "p_corrected" in frame:
            p = frame.pivot(index="tokens", columns="layer", values="p_corrected")
            cells = np.indices(matrix.shape).reshape(2, -1).T
            mark(axes, p.loc[names, layers].to_numpy().ravel() <= SURE, cells)
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(0, len(layers), step := max(1, len(layers) // 10)), layers[::step])
        axes.set_title(f"Patched: {_SITES[result.meta['site']]}")
        axes.invert_yaxis()
    return figure


SURE = 0.05

_SITES = {
    "residual": "the stream entering a layer",
    "attention": "what attention adds",
    "ffn": "what the FFN adds",
}
