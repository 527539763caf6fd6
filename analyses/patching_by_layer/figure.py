"""The picture of patching: the effect by layer and set of tokens."""

from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.heatmap import heatmap
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
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(0, len(layers), step := max(1, len(layers) // 10)), layers[::step])
        axes.set_title(f"Patched: {_SITES[result.meta['site']]}")
        axes.invert_yaxis()
    return figure


_SITES = {
    "residual": "the stream entering a layer",
    "attention": "what attention adds",
    "ffn": "what the FFN adds",
}
