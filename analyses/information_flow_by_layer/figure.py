"""The picture of information flow: a panel for every flow, by the window's first layer."""

from matplotlib.figure import Figure

from ..analysis import Result
from ..numbers_in_words import counted
from ..sweep_over_layers.curves_of_conditions import Panel, draw_curves

_MOST_BESIDE = 4


def draw_information_flow(result: Result) -> Figure:
    """The first measure told of every flow; the control as a broken line."""
    frame = result.frame.assign(what="hidden")
    flows = frame.dropna(subset="flow").drop_duplicates("flow")[["flow", "hidden"]]
    of_box = flows["hidden"].str.contains("object")
    grid: list[list[Panel]] = []
    for names in (flows["flow"][~of_box], flows["flow"][of_box]):
        panels: list[Panel] = [(flow, {"flow": flow}) for flow in names]
        grid += [panels[i : i + _MOST_BESIDE] for i in range(0, len(panels), _MOST_BESIDE)]
    return draw_curves(
        Result(result.name, frame, result.tensors, result.meta),
        grid,
        series="what",
        names={"hidden": f"hidden in {counted(result.meta['width'], 'layer')}"},
        metrics=[told_metric(result)] * len(grid),
        label="from layer",
    )


def told_metric(result: Result) -> str:
    """The measure that is told first: the log-probability where it was measured."""
    metrics = result.meta["margins"]
    return "logprob" if "logprob" in metrics else str(next(iter(metrics)))
