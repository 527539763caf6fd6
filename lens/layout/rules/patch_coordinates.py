"""Inputs that name the place of every patch: its column and row, the same for all of a token.

Patches of such a model may come in any order and any number, so nothing but their places counts;
padding has negative ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..layout import Block, Edges, Layout
from ..layout_inputs import LayoutInputs, Layouts
from ..measure.edge_fit import LinearFit, patch_side
from ..measure.pixel_origins import mean
from ..measure.pixel_tensor import PixelTensor

_MOST = 16  # patches along a token


def explain(inputs: LayoutInputs) -> Layouts | None:
    """A tensor of places ``[image, patch, (x, y)]``, pooled by blocks of patches."""
    for name, tensor in inputs.tensors.items():
        if "position" not in name or tensor.ndim != 3 or tensor.shape[-1] != 2:
            continue
        if ("video" in name) != inputs.are_videos:
            continue
        places = tensor.long().cpu().numpy()
        for pool in range(1, _MOST + 1):
            blocks = [_block(place, pool) for place in places]
            if inputs.per_sample(_joined(inputs, blocks)) is None:
                continue
            blocks = [
                replace(block, edges=_edges(inputs, places, image, pool))
                for image, block in enumerate(blocks)
            ]
            return inputs.per_sample(_joined(inputs, blocks))
    return None


def _joined(inputs: LayoutInputs, blocks: list[Block]) -> list[Layout]:
    """Images one by one; frames joined to videos where the inputs count them."""
    counts = [t for name, t in inputs.tensors.items() if "frames_per_video" in name]
    if not inputs.are_videos or not counts or int(counts[0].sum()) != len(blocks):
        return [Layout((block,)) for block in blocks]
    remaining = iter(blocks)
    return [
        Layout(tuple(replace(next(remaining), time=time, tile=0) for time in range(number)))
        for number in counts[0].flatten().tolist()
    ]


def _block(place: NDArray[np.int64], pool: int) -> Block:
    cols, rows = (int(length) // pool + 1 for length in place.max(axis=0))
    return Block(rows, cols)


def _edges(inputs: LayoutInputs, places: NDArray[np.int64], image: int, pool: int) -> Edges | None:
    pixels = PixelTensor.of(inputs)
    origins = None if pixels is None else pixels.origins
    if origins is None or origins.x.shape[:-1] != places.shape[:-1]:
        return None
    side, edges = patch_side(origins.x.shape[-1]), []
    for axis, field in enumerate((origins.x, origins.y)):
        seen, at = mean(field[image], keep=0), places[image, :, axis]
        length = int(at.max()) + 1
        real = at >= 0
        total = np.bincount(at[real], np.nan_to_num(seen[real]), length)
        number = np.bincount(at[real], np.isfinite(seen[real]), length)
        fit = LinearFit.through(np.where(number, total / np.maximum(number, 1), np.nan), side)
        if fit is None:
            return None
        cells = int(at.max()) // pool + 1
        edges.append(fit.edges(cells, 0, cells * pool))
    return Edges(*edges)
