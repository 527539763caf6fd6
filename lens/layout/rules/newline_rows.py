"""Rows of an image that the text breaks: stretches of one length, the same token between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..layout import Block, Edges, Layout
from ..layout_inputs import Evidence, Explanation, only
from ..measure.painted_images import patch_edges, raster_edges
from ..measure.pixel_tensor import Pixels

Grid = tuple[int, int]
"""Rows and columns."""


def explain(evidence: Evidence) -> Explanation | None:
    """Every image is a row of stretches with one break token between neighbours.

    The pixel tensor must have just as many cells: stretches of one length are not enough to call
    them rows.
    """
    pixels = Pixels.of(evidence)
    if pixels is None or evidence.video:
        return None
    grids: list[Grid] = []
    for sample in range(len(evidence.positions)):
        found = _grids(evidence, sample)
        if found is None:
            return None
        grids += found
    edges = _edges(pixels, grids)
    if edges is None:
        return None
    return evidence.deal(
        [Layout((Block(*grid, edges=at),)) for grid, at in zip(grids, edges, strict=True)]
    )


def _grids(evidence: Evidence, sample: int) -> list[Grid] | None:
    """Of the images of one sample; None when their rows are broken by different tokens."""
    ids = evidence.ids[sample]
    grids: list[Grid] = []
    breaks: list[int] = []
    runs = evidence.runs(sample)
    for last, run in zip([None, *runs], runs, strict=False):
        if last is not None and run[0] == last[-1] + 2 and len(run) == len(last):
            grids[-1] = grids[-1][0] + 1, len(run)
            breaks.append(int(ids[run[0] - 1]))
        else:
            grids.append((1, len(run)))
    return grids if len(breaks) == 0 or only(breaks) is not None else None


def _edges(pixels: Pixels, grids: Sequence[Grid]) -> list[Edges | None] | None:
    """Where the grids lie; None when the pixel tensor does not have just these cells."""
    shape, view = tuple(pixels.tensor.shape), pixels.view
    cells = [rows * cols for rows, cols in grids]
    if pixels.pictures:
        if len(shape) != 4 or shape[0] != len(grids):
            return None
        if any(shape[-2] * cols != shape[-1] * rows for rows, cols in grids):
            return None
        whole = int(shape[-2]), int(shape[-1])
        return [raster_edges(view, (i,), *grid, whole) for i, grid in enumerate(grids)]
    if len(shape) == 2 and shape[0] == sum(cells):
        starts = np.cumsum([0, *cells])
        return [
            patch_edges(view, (slice(starts[i], starts[i + 1]),), grid, 1)
            for i, grid in enumerate(grids)
        ]
    if len(shape) == 3 and shape[0] == len(grids) and shape[1] == max(cells):
        return [patch_edges(view, (i,), grid, 1) for i, grid in enumerate(grids)]
    return None
