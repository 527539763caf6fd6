"""Inputs that name the place of every patch: its column and row, the same for all of a token.

Patches of such a model may come in any order and any number, so nothing but their places counts;
padding has negative ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..layout import Block, Edges, Layout
from ..layout_inputs import Evidence, Explanation
from ..measure.edge_fit import Line, mean
from ..measure.painted_images import patch_side
from ..measure.pixel_tensor import Pixels

_MOST = 16  # patches along a token


def explain(evidence: Evidence) -> Explanation | None:
    """A tensor of places ``[image, patch, (x, y)]``, pooled by blocks of patches."""
    for name, tensor in evidence.tensors.items():
        if "position" not in name or tensor.ndim != 3 or tensor.shape[-1] != 2:
            continue
        if ("video" in name) != evidence.video:
            continue
        places = tensor.long().cpu().numpy()
        for pool in range(1, _MOST + 1):
            blocks = [_block(place, pool) for place in places]
            if evidence.deal(_joined(evidence, blocks)) is None:
                continue
            blocks = [
                replace(block, edges=_edges(evidence, places, image, pool))
                for image, block in enumerate(blocks)
            ]
            return evidence.deal(_joined(evidence, blocks))
    return None


def _joined(evidence: Evidence, blocks: list[Block]) -> list[Layout]:
    """Images one by one; frames joined to videos where the inputs count them."""
    counts = [t for name, t in evidence.tensors.items() if "frames_per_video" in name]
    if not evidence.video or not counts or int(counts[0].sum()) != len(blocks):
        return [Layout((block,)) for block in blocks]
    left = iter(blocks)
    return [
        Layout(tuple(replace(next(left), time=time, tile=0) for time in range(number)))
        for number in counts[0].flatten().tolist()
    ]


def _block(place: NDArray[np.int64], pool: int) -> Block:
    cols, rows = (int(length) // pool + 1 for length in place.max(axis=0))
    return Block(rows, cols)


def _edges(evidence: Evidence, places: NDArray[np.int64], image: int, pool: int) -> Edges | None:
    pixels = Pixels.of(evidence)
    if pixels is None or pixels.view is None or pixels.view.x.shape[:-1] != places.shape[:-1]:
        return None
    side, lines = patch_side(pixels.view.x.shape[-1]), []
    for axis, field in enumerate((pixels.view.x, pixels.view.y)):
        seen, at = mean(field[image], keep=0), places[image, :, axis]
        length = int(at.max()) + 1
        real = at >= 0
        total = np.bincount(at[real], np.nan_to_num(seen[real]), length)
        number = np.bincount(at[real], np.isfinite(seen[real]), length)
        line = Line.through(np.where(number, total / np.maximum(number, 1), np.nan), side)
        if line is None:
            return None
        cells = int(at.max()) // pool + 1
        lines.append(line.edges(cells, 0, cells * pool))
    return Edges(*lines)
