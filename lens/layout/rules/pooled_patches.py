"""Inputs that name, for every visual token, the patches that it is pooled from.

A coarse grid and a fine one are pooled from overlapping crops, so that neither the crops nor the
order of patches says where a token looks; the patches that it is made of do.
"""

from __future__ import annotations

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from ..layout import Block, Edges, Layout
from ..layout_inputs import LayoutInputs, Layouts, integers
from ..measure.edge_fit import LinearFit, grid_edges, patch_side
from ..measure.pixel_origins import mean
from ..measure.pixel_tensor import PixelTensor


def explain(inputs: LayoutInputs) -> Layouts | None:
    """Grids ``[image, (rows, cols) × grid]`` and patch indices ``[token, patch]``, -1 for none."""
    word = "video" if inputs.are_videos else "image"
    grids = inputs.tensors.get(f"{word}_grids")
    pooling = inputs.tensors.get(f"{word}_token_pooling")
    if grids is None or pooling is None or len(pooling) != inputs.total:
        return None
    if inputs.are_videos:
        return inputs.per_sample(
            [
                Layout(tuple(Block(rows, cols, time=t, tile=0) for t in range(frames)))
                for frames, rows, cols in integers(grids)
            ]
        )
    x, y, side = _places(inputs, pooling.long().cpu().numpy())
    layouts, start = [], 0
    for row in integers(grids):
        blocks = []
        for rows, cols in zip(row[::2], row[1::2], strict=True):
            token = slice(start, start + rows * cols)
            start += rows * cols
            edges = _edges(x[token], y[token], rows, cols, side) if rows * cols else None
            blocks.append(Block(rows, cols, edges=edges))
        layouts.append(Layout(tuple(block for block in blocks if len(block))))
    return inputs.per_sample(layouts)


def _places(
    inputs: LayoutInputs, pooling: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Mean place of the patches of every token, ``[token]``, and a token's side in pixels."""
    pixels = PixelTensor.of(inputs)
    nowhere = np.full(len(pooling), np.nan)
    if pixels is None or pixels.origins is None:
        return nowhere, nowhere, 0
    places = []
    for field in (pixels.origins.x, pixels.origins.y):
        patches = mean(rearrange(field, "... value -> (...) value"), keep=0)
        chosen = np.where(pooling >= 0, patches[pooling], np.nan)
        places.append(mean(chosen, keep=0))
    side = patch_side(pixels.origins.x.shape[-1]) * round(np.sqrt(pooling.shape[1]))
    return places[0], places[1], side


def _edges(
    x: NDArray[np.float64], y: NDArray[np.float64], rows: int, cols: int, side: int
) -> Edges | None:
    x, y = (rearrange(place, "(row col) -> row col", row=rows, col=cols) for place in (x, y))
    across = LinearFit.through(mean(x, keep=1), side)
    down = LinearFit.through(mean(y, keep=0), side)
    return grid_edges(across, down, rows, cols)
