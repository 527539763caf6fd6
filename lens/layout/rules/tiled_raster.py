"""One raster that runs over several tiles, with a newline behind every row.

The picture is cut into tiles only for the vision tower: its tokens are stitched together again,
rows of padding are left out, and every row gets a newline token under the same id. Read as tiles,
almost every token of such an image would be given a wrong place.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from transformers.image_processing_utils import select_best_resolution

from ..layout import Block, Edges, Layout
from ..layout_inputs import LayoutInputs, Layouts, integers
from ..measure.edge_fit import LinearFit, raster_edges
from ..measure.pixel_origins import PixelOrigins, mean
from ..measure.pixel_tensor import PixelTensor


@dataclass(frozen=True)
class _Canvas:
    """A raster of cells over ``down`` × ``across`` tiles, of which a part is kept."""

    down: int
    across: int
    top: int
    left: int
    rows: int
    cols: int

    def without_padding(self, size: Sequence[int]) -> _Canvas:
        """The part that an image of (height, width) covers when it keeps its proportions."""
        height, width = size
        if width / height > self.cols / self.rows:
            kept = int(round(height * self.cols / width, 7))
            pad = (self.rows - kept) // 2
            return replace(self, top=pad, rows=self.rows - 2 * pad)
        kept = int(round(width * self.rows / height, 7))
        pad = (self.cols - kept) // 2
        return replace(self, left=pad, cols=self.cols - 2 * pad)


def explain(inputs: LayoutInputs) -> Layouts | None:
    """A raster over tiles, behind or before a thumbnail of the whole image."""
    first = _thumbnail_first(inputs)
    return _thumbnail_last(inputs) if first is None else first


def _thumbnail_first(inputs: LayoutInputs) -> Layouts | None:
    """A square thumbnail, then the canvas that best fits its proportions.

    As in LLaVA-NeXT (section "Dynamic high resolution"): the canvas is one of
    ``image_grid_pinpoints``, and above ``anyres_max_N`` tiles its cells are interpolated to fewer.
    """
    pinpoints, sizes = inputs.setting("image_grid_pinpoints"), inputs.tensors.get("image_sizes")
    pixels = PixelTensor.of(inputs)
    if pinpoints is None or sizes is None or pixels is None or not pixels.holds_pictures:
        return None
    numbers = _tiles_per_image(pixels, len(sizes))
    if numbers is None:
        return None
    most = re.search(r"anyres_max_(\d+)", str(inputs.setting("vision_aspect_ratio")))
    limit = int(most[1]) if most else None
    tile, remaining = int(pixels.tensor.shape[-1]), iter(pixels.real_pictures())
    tiled = []
    for size, number in zip(integers(sizes), numbers, strict=True):
        best = select_best_resolution(tuple(size), pinpoints)
        down, across = (length // tile for length in best)
        tiles = list(itertools.islice(remaining, number))
        if number not in (1, 1 + down * across):
            return None
        tiled.append(_TiledImage(size, tiles, down, across, limit))
    fits = [
        side
        for side in range(1, tile + 1)
        if inputs.per_sample([image.layout(side, tile, None) for image in tiled]) is not None
    ]
    side = _only(fits, inputs, tile)
    if side is None:
        return None
    return inputs.per_sample([image.layout(side, tile, pixels.origins) for image in tiled])


def _only(sides: Sequence[int], inputs: LayoutInputs, tile: int) -> int | None:
    """The side of a tile in cells: one for each patch if that fits, or else the only one that does.

    Of an image of 400x20 pixels all rows of the canvas are padding, and 16 tokens of a thumbnail of
    4x4 cells are as many as those of one of 3x3 with a row of 6 and a newline.
    """
    patch = inputs.setting("patch_size")
    if isinstance(patch, int) and tile // patch in sides:
        return tile // patch
    return sides[0] if len(sides) == 1 else None


def _thumbnail_last(inputs: LayoutInputs) -> Layouts | None:
    """The canvas, a separator, then the thumbnail, rows of both ended by newlines.

    As in Phi-4-multimodal; which cells of the canvas are kept is said by a mask of patches.
    """
    sizes, pixels = inputs.tensors.get("image_sizes"), PixelTensor.of(inputs)
    masks = [
        tensor
        for name, tensor in inputs.tensors.items()
        if "image" in name and "mask" in name and tensor.ndim == 4
    ]
    if sizes is None or not masks or pixels is None or not pixels.holds_pictures:
        return None
    mask, tile = masks[0].cpu().numpy() > 0, int(pixels.tensor.shape[-1])
    if len(mask) != len(sizes) or len(mask) != len(pixels.tensor) or pixels.tensor.ndim != 5:
        return None
    patches, fits = mask.shape[-1], dict[int, Layouts]()
    for side in (side for side in range(patches, 0, -1) if patches % side == 0):
        layouts = []
        for index, (height, width) in enumerate(integers(sizes)):
            down, across = height // tile, width // tile
            kept = mask[index, 1 : 1 + down * across, :: patches // side, :: patches // side]
            cells = rearrange(
                kept, "(down across) row col -> (down row) (across col)", down=down, across=across
            )
            rows, cols = int(cells[:, 0].sum()), int(cells[0].sum())
            canvas = _Canvas(down, across, 0, 0, rows, cols)
            tiles = [(index, crop) for crop in range(1, 1 + down * across)]
            edges = _edges(pixels.origins, tiles, canvas, side)
            small = raster_edges(pixels.origins, (index, 0), side, side, (tile, tile))
            first = Block(rows, cols, newline=True, after=1, edges=edges)
            layouts.append(Layout((first, Block(side, side, newline=True, edges=small))))
        found = inputs.per_sample(layouts)
        if found is not None:
            fits[side] = found
    only = _only(list(fits), inputs, tile)
    return None if only is None else fits[only]


def _tiles_per_image(pixels: PixelTensor, images: int) -> list[int] | None:
    """Real tiles of every image."""
    if pixels.tensor.ndim == 5 and len(pixels.tensor) == images:
        pictures = pixels.real_pictures()
        return [sum(index[0] == image for index in pictures) for image in range(images)]
    owners = pixels.owners()
    if owners is not None:
        return [int((owners == image).sum()) for image in range(images)]
    return None


@dataclass(frozen=True)
class _TiledImage:
    """One image: its size (height, width), its tiles, their grid, and the most tiles kept whole."""

    size: Sequence[int]
    tiles: Sequence[tuple[int, ...]]
    down: int
    across: int
    limit: int | None

    def layout(self, side: int, tile: int, origins: PixelOrigins | None) -> Layout:
        """With tiles of ``side`` × ``side`` cells on ``tile`` × ``tile`` pixels."""
        base = raster_edges(origins, self.tiles[0], side, side, (tile, tile))
        if len(self.tiles) == 1:
            return Layout((Block(side, side, after=1, edges=base),))
        whole = _Canvas(self.down, self.across, 0, 0, self.down * side, self.across * side)
        canvas = whole.without_padding(self.size)
        edges = _edges(origins, self.tiles[1:], canvas, side)
        rows, cols = canvas.rows, canvas.cols
        ratio = math.sqrt(rows * cols / (self.limit * side**2)) if self.limit else 0.0
        if ratio > 1.1:
            rows, cols = int(rows // ratio), int(cols // ratio)
            if edges is not None:
                edges = Edges(_fewer(edges.x, cols), _fewer(edges.y, rows))
        thumbnail = Block(side, side, edges=base)
        if not rows:  # so wide that padding is all there is
            return Layout((thumbnail,))
        return Layout((thumbnail, Block(rows, cols, newline=True, edges=edges)))


def _fewer(edges: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    return np.linspace(edges[0], edges[-1], cells + 1)


def _edges(
    origins: PixelOrigins | None, tiles: Sequence[tuple[int, ...]], canvas: _Canvas, side: int
) -> Edges | None:
    if origins is None:
        return None
    x = np.stack([mean(origins.x[tile], keep=-1) for tile in tiles])
    y = np.stack([mean(origins.y[tile], keep=-2) for tile in tiles])
    # Along the canvas: the tiles of one row (column) one after another, averaged over the others.
    columns = rearrange(x, "(down across) pixel -> across down pixel", down=canvas.down)
    rows = rearrange(y, "(down across) pixel -> down across pixel", down=canvas.down)
    across = LinearFit.through(np.concatenate([mean(column, keep=-1) for column in columns]))
    down = LinearFit.through(np.concatenate([mean(row, keep=-1) for row in rows]))
    if across is None or down is None:
        return None
    cell = across.units / (canvas.across * side)
    return Edges(
        across.edges(canvas.cols, canvas.left * cell, (canvas.left + canvas.cols) * cell),
        down.edges(canvas.rows, canvas.top * cell, (canvas.top + canvas.rows) * cell),
    )
