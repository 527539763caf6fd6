"""The picture of integrated gradients: each token's share at its place in the image."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..analysis import Result
from ..figures.heatmap import heatmap
from ..figures.style import new_figure, printable, style
from ..numbers_in_words import estimate

_MOST = 6


def draw_integrated_gradients(result: Result) -> Figure:
    """A panel for each image, rows of the grid from above; what has no place is not drawn."""
    frame = result.frame
    placed = frame[frame["row"].notna() & (frame["row"] >= 0)]
    views: list[Any] = list(placed.groupby(["sample", "image", "tile"]))[:_MOST]
    columns = min(3, max(1, len(views)))
    rows = -(-max(1, len(views)) // columns)
    with style():
        figure = new_figure(0.3 + 2.3 * rows)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(views) :]:
            axes.remove()
        for letter, axes, (key, tokens) in zip("abcdef", panels, views, strict=False):
            sample, image, tile = map(int, key)
            heatmap(
                axes, _grid(tokens), unit=_UNIT[result.meta["of"]], rows="row", columns="column"
            )
            axes.invert_yaxis()
            word = printable(result.meta["targets"][sample])
            more = "" if image == tile == 0 else f" ({image}, {tile})"
            axes.set_title(f"{letter}  “{word}”{more}")
        gain = result.meta.get("gain")
        if gain is not None and not np.isnan(gain["low"]):
            figure.suptitle(f"gain over all images: {estimate(gain)} {_UNIT[result.meta['of']]}")
    return figure


_UNIT = {"logprob": "nats", "logit": "logit"}


def _grid(tokens: pd.DataFrame) -> np.ndarray:
    """Values by row and column; frames of a video are summed."""
    summed = tokens.groupby(["row", "col"])["value"].sum().unstack("col")
    return summed.to_numpy(dtype=float)
