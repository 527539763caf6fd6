"""A matrix over two axes in colours around zero, with its own scale beside it."""

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .style import INK

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


def mark(axes: Axes, marked: Bool[np.ndarray, " cell"], cells: Int[np.ndarray, "cell two"]) -> None:
    """Put a dot into some cells of a matrix that was drawn.

    Args:
        axes: Of the matrix.
        marked: Which of the cells.
        cells: Their rows and columns.
    """
    rows, columns = cells[marked].T
    axes.plot(columns, rows, "o", color=INK, markersize=2, linestyle="")
