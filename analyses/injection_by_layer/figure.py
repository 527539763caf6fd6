"""The picture of injection: accuracy and divergence by the layer of entry and of exit."""

from matplotlib.figure import Figure

from ..analysis import Result
from ..sweep_over_layers.curves_of_conditions import Panel, draw_curves

_WAYS = {"entry": "entering at k", "exit": "leaving at m", "both": "half of the layers from k on"}
NAMES = {"raw": "as they are", "rescaled": "rescaled", "matched": "each matched", "none": "leaving"}


def draw_injection(result: Result) -> Figure:
    """A row for every measure (two at most), a column for every way."""
    frame = result.frame.assign(norm=result.frame["norm"].fillna("none"))
    ways = [way for way in _WAYS if (frame["way"] == way).any()]
    metrics = [
        m for m in ("accuracy", "kl", *result.meta["margins"]) if m in result.meta["margins"]
    ]
    metrics = list(dict.fromkeys(metrics))[:2]
    grid: list[list[Panel]] = [[(_WAYS[way], {"way": way}) for way in ways] for _ in metrics]
    shown = Result(result.name, frame, result.tensors, result.meta)
    return draw_curves(
        shown, grid, series="norm", names=NAMES, metrics=metrics, label="layer k or m"
    )
