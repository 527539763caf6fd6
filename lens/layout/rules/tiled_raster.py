"""One raster that runs over several tiles, with a newline behind every row.

The picture is cut into tiles only for the vision tower: its tokens are stitched together again,
rows of padding are cut off, and every row gets a newline token under the same id. Read as tiles,
almost every token of such an image would be given a wrong place.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers.image_processing_utils import select_best_resolution

from ..layout import Block, Edges, Layout
from ..layout_inputs import Evidence, Explanation, integers
from ..measure.edge_fit import Line, mean
from ..measure.painted_images import View, raster_edges
from ..measure.pixel_tensor import Pixels


@dataclass(frozen=True)
class _Canvas:
    """A raster of cells over ``down`` × ``across`` tiles, of which a part is kept."""

    down: int
    across: int
    top: int
    left: int
    rows: int
    cols: int

    def cut(self, size: Sequence[int]) -> _Canvas:
        """Without the padding that keeps the proportions of an image of (height, width)."""
        height, width = size
        if width / height > self.cols / self.rows:
            kept = int(round(height * self.cols / width, 7))
            pad = (self.rows - kept) // 2
            return replace(self, top=pad, rows=self.rows - 2 * pad)
        kept = int(round(width * self.rows / height, 7))
        pad = (self.cols - kept) // 2
        return replace(self, left=pad, cols=self.cols - 2 * pad)


def explain_thumbnail_first(evidence: Evidence) -> Explanation | None:
    """A square view of the whole image, then the canvas that best fits its proportions.

    As in LLaVA-NeXT (section "Dynamic high resolution"): the canvas is one of
    ``image_grid_pinpoints``, and above ``anyres_max_N`` views its cells are interpolated to fewer.
    """
    pinpoints, sizes = evidence.setting("image_grid_pinpoints"), evidence.tensors.get("image_sizes")
    pixels = Pixels.of(evidence)
    if pinpoints is None or sizes is None or pixels is None or not pixels.pictures:
        return None
    numbers = _tiles(pixels, len(sizes))
    if numbers is None:
        return None
    most = re.search(r"anyres_max_(\d+)", str(evidence.setting("vision_aspect_ratio")))
    limit = int(most[1]) if most else None
    tile, left = int(pixels.tensor.shape[-1]), iter(pixels.units())
    pinned = []
    for size, number in zip(integers(sizes), numbers, strict=True):
        best = select_best_resolution(tuple(size), pinpoints)
        down, across = (length // tile for length in best)
        units = list(itertools.islice(left, number))
        if number not in (1, 1 + down * across):
            return None
        pinned.append(_Pinned(size, units, down, across, limit))
    for side in range(1, tile + 1):
        if evidence.deal([image.layout(side, tile, None) for image in pinned]) is not None:
            return evidence.deal([image.layout(side, tile, pixels.view) for image in pinned])
    return None


def explain_thumbnail_last(evidence: Evidence) -> Explanation | None:
    """The canvas, a separator, then the view of the whole, rows of both ended by newlines.

    As in Phi-4-multimodal; which cells of the canvas are kept is said by a mask of patches.
    """
    sizes, pixels = evidence.tensors.get("image_sizes"), Pixels.of(evidence)
    masks = [
        tensor
        for name, tensor in evidence.tensors.items()
        if "image" in name and "mask" in name and tensor.ndim == 4
    ]
    if sizes is None or not masks or pixels is None or not pixels.pictures:
        return None
    mask, tile = masks[0].cpu().numpy() > 0, int(pixels.tensor.shape[-1])
    if len(mask) != len(sizes) or len(mask) != len(pixels.tensor) or pixels.tensor.ndim != 5:
        return None
    patches = mask.shape[-1]
    for side in (side for side in range(patches, 0, -1) if patches % side == 0):
        layouts = []
        for index, (height, width) in enumerate(integers(sizes)):
            down, across = height // tile, width // tile
            kept = mask[index, 1 : 1 + down * across, :: patches // side, :: patches // side]
            whole = kept.reshape(down, across, side, side).transpose(0, 2, 1, 3)
            cells = whole.reshape(down * side, across * side)
            rows, cols = int(cells[:, 0].sum()), int(cells[0].sum())
            canvas = _Canvas(down, across, 0, 0, rows, cols)
            units = [(index, crop) for crop in range(1, 1 + down * across)]
            edges = _edges(pixels.view, units, canvas, side)
            small = raster_edges(pixels.view, (index, 0), side, side, (tile, tile))
            first = Block(rows, cols, newline=True, after=1, edges=edges)
            layouts.append(Layout((first, Block(side, side, newline=True, edges=small))))
        dealt = evidence.deal(layouts)
        if dealt is not None:
            return dealt
    return None


def _tiles(pixels: Pixels, images: int) -> list[int] | None:
    """Real tiles of every image."""
    units = pixels.units()
    if pixels.tensor.ndim == 5 and len(pixels.tensor) == images:
        return [sum(index[0] == image for index in units) for image in range(images)]
    owners = pixels.owners()
    if owners is not None:
        return [int((owners == image).sum()) for image in range(images)]
    return None


@dataclass(frozen=True)
class _Pinned:
    """One image: its size (height, width), its tiles, their grid, and the most views kept whole."""

    size: Sequence[int]
    units: Sequence[tuple[int, ...]]
    down: int
    across: int
    limit: int | None

    def layout(self, side: int, tile: int, view: View | None) -> Layout:
        """With tiles of ``side`` × ``side`` cells on ``tile`` × ``tile`` pixels."""
        base = raster_edges(view, self.units[0], side, side, (tile, tile))
        if len(self.units) == 1:
            return Layout((Block(side, side, after=1, edges=base),))
        whole = _Canvas(self.down, self.across, 0, 0, self.down * side, self.across * side)
        canvas = whole.cut(self.size)
        edges = _edges(view, self.units[1:], canvas, side)
        rows, cols = canvas.rows, canvas.cols
        ratio = math.sqrt(rows * cols / (self.limit * side**2)) if self.limit else 0.0
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
            if edges is not None:
                edges = Edges(_fewer(edges.x, cols), _fewer(edges.y, rows))
        fine = Block(rows, cols, newline=True, edges=edges)
        return Layout((Block(side, side, edges=base), fine))


def _fewer(edges: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    return np.linspace(edges[0], edges[-1], cells + 1)


def _edges(
    view: View | None, units: Sequence[tuple[int, ...]], canvas: _Canvas, side: int
) -> Edges | None:
    if view is None:
        return None
    shape = (canvas.down, canvas.across)
    x = np.stack([mean(view.x[unit], keep=-1) for unit in units]).reshape(*shape, -1)
    y = np.stack([mean(view.y[unit], keep=-2) for unit in units]).reshape(*shape, -1)
    # Along the canvas: the tiles of one row (column) one after another, averaged over the others.
    across = Line.through(np.concatenate([mean(x[:, i], keep=-1) for i in range(shape[1])]))
    down = Line.through(np.concatenate([mean(y[i], keep=-1) for i in range(shape[0])]))
    if across is None or down is None:
        return None
    cell = across.units / (canvas.across * side)
    return Edges(
        across.edges(canvas.cols, canvas.left * cell, (canvas.left + canvas.cols) * cell),
        down.edges(canvas.rows, canvas.top * cell, (canvas.top + canvas.rows) * cell),
    )
