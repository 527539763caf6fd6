"""Inputs that name, for every visual token, the patches that it is pooled from.

A coarse view and a fine one are pooled from overlapping crops, so that neither the crops nor the
order of patches says where a token looks; the patches that it is made of do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..layout import Block, Edges, Layout
from ..layout_inputs import Evidence, Explanation, integers
from ..measure.edge_fit import Line, grid_edges, mean
from ..measure.painted_images import patch_side
from ..measure.pixel_tensor import Pixels


def explain(evidence: Evidence) -> Explanation | None:
    """Grids ``[image, (rows, cols) × view]`` and patch indices ``[token, patch]``, -1 for none."""
    word = "video" if evidence.video else "image"
    grids = evidence.tensors.get(f"{word}_grids")
    pooling = evidence.tensors.get(f"{word}_token_pooling")
    if grids is None or pooling is None or len(pooling) != evidence.total:
        return None
    if evidence.video:
        return evidence.deal(
            [
                Layout(tuple(Block(rows, cols, time=t, tile=0) for t in range(frames)))
                for frames, rows, cols in integers(grids)
            ]
        )
    x, y, side = _places(evidence, pooling.long().cpu().numpy())
    layouts, start = [], 0
    for row in integers(grids):
        blocks = []
        for rows, cols in zip(row[::2], row[1::2], strict=True):
            token = slice(start, start + rows * cols)
            start += rows * cols
            edges = _edges(x[token], y[token], rows, cols, side) if rows * cols else None
            blocks.append(Block(rows, cols, edges=edges))
        layouts.append(Layout(tuple(block for block in blocks if len(block))))
    return evidence.deal(layouts)


def _places(
    evidence: Evidence, pooling: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Mean place of the patches of every token, ``[token]``, and a token's side in pixels."""
    pixels = Pixels.of(evidence)
    nowhere = np.full(len(pooling), np.nan)
    if pixels is None or pixels.view is None:
        return nowhere, nowhere, 0
    values = pixels.view.x.shape[-1]
    places = []
    for field in (pixels.view.x, pixels.view.y):
        patches = mean(field.reshape(-1, values), keep=0)
        chosen = np.where(pooling >= 0, patches[pooling], np.nan)
        places.append(mean(chosen, keep=0))
    side = patch_side(values) * round(np.sqrt(pooling.shape[1]))
    return places[0], places[1], side


def _edges(
    x: NDArray[np.float64], y: NDArray[np.float64], rows: int, cols: int, side: int
) -> Edges | None:
    across = Line.through(mean(x.reshape(rows, cols), keep=1), side)
    down = Line.through(mean(y.reshape(rows, cols), keep=0), side)
    return grid_edges(across, down, rows, cols)
