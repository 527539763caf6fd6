"""An axis as long as the changes on it ask for, however wide their intervals are."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .paired_table import METRICS

RUN_OFF = "Intervals much wider than all changes run off the picture."
"""For the caption of a figure with such axes."""

_ROOM = 1.0  # beside the changes, in multiples of what they span


def changes_in_sight(axes: Axes, axis: str, rows: pd.DataFrame, margin: float) -> None:
    """Intervals that are many times wider than all changes run off the picture.

    On few images the interval of a KL divergence may reach a thousand times beyond all that was
    measured; an axis as long as that would show nothing else. Where no interval is as wide the axis
    stays as it is.

    Args:
        axes: Where changes and intervals are drawn.
        axis: ``x`` or ``y``, along which they are.
        rows: Of one measure.
        margin: A change up to this counts as none; it is seen too.
    """
    if rows.empty:
        return
    metric = METRICS[rows["metric"].iloc[0]]
    values = np.concatenate([rows["difference"], rows["difference"] - rows["beyond"], [0, margin]])
    ends = rows[["difference_low", "difference_high"]].to_numpy(dtype=float)
    values, ends = (metric.factor * kept[np.isfinite(kept)] for kept in (values, ends))
    room = _ROOM * np.ptp(values)
    least, most = values.min() - room, values.max() + room
    if not ends.size or (ends.min() >= least and ends.max() <= most):
        return
    low = min(values.min(), max(least, ends.min()))
    high = max(values.max(), min(most, ends.max()))
    border = 0.05 * (high - low)
    limits = (low - border, high + border)
    if axis == "x":
        axes.set_xlim(limits)
    else:
        axes.set_ylim(limits)
