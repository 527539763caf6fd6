"""The picture of redundancy: a row for every set of tokens, a column for every scope."""

from matplotlib.figure import Figure

from ..analysis import Result
from ..sweep_over_layers.curves_of_conditions import Panel, draw_curves

NAMES = {"attention": "no attention", "ffn": "no FFN", "both": "neither"}
_SCOPES = {
    "single": "in layer i",
    "below": "below m",
    "above": "from m on",
    "window": "{width} layers from m on",
}
_MOST_SETS = 5


def draw_redundancy(result: Result) -> Figure:
    """The first measure of every set of tokens, by layer; the control as a broken line."""
    frame = result.frame
    metric = next(iter(result.meta["margins"]))
    sets = list(dict.fromkeys(frame["tokens"].dropna()))[:_MOST_SETS]
    scopes = [scope for scope in _SCOPES if (frame["scope"] == scope).any()]
    grid: list[list[Panel]] = [
        [
            (
                f"{tokens}: {_SCOPES[scope].format(width=result.meta['width'])}",
                {"tokens": tokens, "scope": scope},
            )
            for scope in scopes
        ]
        for tokens in sets
    ]
    return draw_curves(
        result, grid, series="operation", names=NAMES, metrics=[metric] * len(sets), label="m"
    )
