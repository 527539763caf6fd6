"""What figures over layers share: ticks that do not crowd, curves with their bands, percents."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

_MOST_TICKS = 8


def layer_axis(axes: Axes, layers: "pd.Series[int]", label: str = "layer") -> None:
    """Whole layers as ticks, about eight at most."""
    known = sorted(set(layers.dropna().astype(int)))
    axes.set_xticks(known[:: max(1, len(known) // _MOST_TICKS)])
    axes.set_xlabel(label)


def percent_axis(axes: Axes) -> None:
    """Shares from 0 to 1 written as percents; the sign stands in the axis' label."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def curve(
    axes: Axes,
    rows: pd.DataFrame,
    color: str,
    *,
    label: str | None = None,
    columns: tuple[str, str, str] = ("value", "low", "high"),
) -> None:
    """A value over the layers of a table, with a band from low to high."""
    layer = rows["layer"].astype(int)
    value, low, high = (rows[column] for column in columns)
    axes.fill_between(layer, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(layer, value, "o-", color=color, label=label)
