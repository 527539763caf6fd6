"""Rows of an image that newline tokens of the text end: stretches of one length between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..layout import Block, Edges, Layout
from ..layout_inputs import LayoutInputs, Layouts
from ..measure.edge_fit import patch_edges, raster_edges
from ..measure.pixel_tensor import PixelTensor

Grid = tuple[int, int]
"""Rows and columns."""


def explain(inputs: LayoutInputs) -> Layouts | None:
    """Every image is a row of stretches with one break token between neighbours.

    The pixel tensor must have just as many cells: stretches of one length are not enough to call
    them rows.
    """
    pixels = PixelTensor.of(inputs)
    if pixels is None or inputs.are_videos:
        return None
    grids: list[Grid] = []
    for sample in range(len(inputs.positions)):
        found = _grids(inputs, sample)
        if found is None:
            return None
        grids += found
    edges = _edges(pixels, grids)
    if edges is None:
        return None
    return inputs.per_sample(
        [Layout((Block(*grid, edges=at),)) for grid, at in zip(grids, edges, strict=True)]
    )


def _grids(inputs: LayoutInputs, sample: int) -> list[Grid] | None:
    """Of the images of one sample; None when their rows are broken by different tokens."""
    ids = inputs.ids[sample]
    grids: list[Grid] = []
    breaks: set[int] = set()
    stretches = inputs.stretches(sample)
    for last, row in zip([None, *stretches], stretches, strict=False):
        if last is not None and row[0] == last[-1] + 2 and len(row) == len(last):
            grids[-1] = grids[-1][0] + 1, len(row)
            breaks.add(int(ids[row[0] - 1]))
        else:
            grids.append((1, len(row)))
    return grids if len(breaks) <= 1 else None


def _edges(pixels: PixelTensor, grids: Sequence[Grid]) -> list[Edges | None] | None:
    """Where the grids lie; None when the pixel tensor does not have just these cells."""
    shape, origins = tuple(pixels.tensor.shape), pixels.origins
    cells = [rows * cols for rows, cols in grids]
    if pixels.holds_pictures:
        if len(shape) != 4 or shape[0] != len(grids):
            return None
        if any(shape[-2] * cols != shape[-1] * rows for rows, cols in grids):
            return None
        whole = int(shape[-2]), int(shape[-1])
        return [raster_edges(origins, (i,), *grid, whole) for i, grid in enumerate(grids)]
    if len(shape) == 2 and shape[0] == sum(cells):
        starts = np.cumsum([0, *cells])
        return [
            patch_edges(origins, (slice(starts[i], starts[i + 1]),), grid, 1)
            for i, grid in enumerate(grids)
        ]
    if len(shape) == 3 and shape[0] == len(grids) and shape[1] == max(cells):
        return [patch_edges(origins, (i,), grid, 1) for i, grid in enumerate(grids)]
    return None
