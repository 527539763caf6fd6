"""A matrix over two axes in colours around zero, with its own scale beside it."""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

_MOST_TICKS = 8


def heatmap(
    axes: Axes, values: Float[np.ndarray, "row column"], *, unit: str, rows: str, columns: str
) -> None:
    """Draw a matrix, row 0 at the bottom; what is missing stays white.

    Args:
        axes: Where to.
        values: By row and column; blue is below zero, red above.
        unit: What a value is, above the scale.
        rows: What the rows are.
        columns: What the columns are.
    """
    most = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", origin="lower")
    axes.set(xlabel=columns, ylabel=rows)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(_MOST_TICKS, integer=True))
    figure = axes.get_figure()
    assert figure is not None
    scale = figure.colorbar(drawn, ax=axes, fraction=0.06, pad=0.03)
    scale.locator = MaxNLocator(5)
    scale.update_ticks()
    scale.ax.set_title(unit, fontweight="normal")
