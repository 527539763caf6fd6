"""Grids that the inputs name, as ``image_grid_thw`` of Qwen2-VL: a row per image, tile or video.

Processors of variable resolution report how many patches (or pixels) each picture became, as
(time, height, width) or (height, width). A token covers a square of them whose side is solved for:
the numbers of tokens must come out exactly, in every sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..layout import Block, Edges, Layout
from ..layout_inputs import LayoutInputs, Layouts, integers
from ..measure.edge_fit import patch_edges, patch_side, raster_edges
from ..measure.pixel_tensor import PixelTensor
from ..tiles_of_images import layouts_of_tiles

_WIDEST = 256  # pixels along a token, larger than any model has used


@dataclass(frozen=True)
class _TokenGrid:
    """One way in which tokens can cover the rows of a grid tensor."""

    merges: tuple[int, ...]  # per row the side of a token, in units of the grid
    newline: bool = False  # whether a newline token ends every row of the raster
    around: int = 0  # tokens without a place before and behind it
    times: int = 1  # frames that share their tokens

    def blocks(self, index: int, size: Sequence[int]) -> list[Block]:
        merge = self.merges[index]
        rows, cols = (math.ceil(side / merge) for side in size[1:])
        block = Block(rows, cols, self.newline, before=self.around, after=self.around, tile=0)
        return [replace(block, time=time) for time in range(math.ceil(size[0] / self.times))]


def explain(inputs: LayoutInputs) -> Layouts | None:
    """Rows of a grid tensor; plain or with newline tokens."""
    for name, tensor in sorted(inputs.tensors.items()):
        if not _is_grid(name, tensor, inputs.are_videos):
            continue
        sizes = [row if len(row) == 3 else [1, *row] for row in integers(tensor)]
        if any(value < 1 for row in sizes for value in row) or not _fits_pixels(inputs, sizes):
            continue
        # Time, height and width are given per image or video; bare shapes may be those of tiles.
        tiled = tensor.shape[-1] == 2 and "image" not in name and "video" not in name
        for token_grid in _token_grids(inputs, sizes):
            layouts = _layouts(inputs, sizes, token_grid, tiled)
            if layouts is not None:
                return layouts
    return None


def _is_grid(name: str, tensor: Tensor, video: bool) -> bool:
    if tensor.is_floating_point() or tensor.ndim < 2 or tensor.shape[-1] not in (2, 3):
        return False
    if ("video" in name) != video or name == "input_ids":
        return False
    # A place for every patch is no grid, and neither are masks and type ids.
    return not any(word in name for word in ("position", "mask", "type_id", "pooling"))


def _fits_pixels(inputs: LayoutInputs, sizes: Sequence[Sequence[int]]) -> bool:
    """Whether the pixel tensor has the shape that pictures of these sizes make.

    The sizes of the *original* images are reported by tilers too, and some side divides almost
    any of them into almost any number of tokens.
    """
    pixels = PixelTensor.of(inputs)
    if pixels is None:
        return True
    shape, cells = tuple(pixels.tensor.shape), sum(math.prod(size) for size in sizes)
    values, rest = divmod(pixels.tensor.numel(), cells)
    if not rest and patch_side(values) > 1:  # as many patches as there are, one by one
        return True
    if shape[0] != len(sizes):
        return False
    if pixels.holds_pictures:
        return shape[-2:] == tuple(max(size[axis] for size in sizes) for axis in (1, 2))
    return len(shape) == 3 and max(math.prod(size) for size in sizes) <= shape[1]


def _token_grids(inputs: LayoutInputs, sizes: Sequence[Sequence[int]]) -> Iterator[_TokenGrid]:
    """From the plainest on: sides that the inputs state, sides that divide all, any side."""
    merges: list[tuple[int, ...]] = []
    for name, tensor in inputs.tensors.items():
        if "merge_size" in name and ("video" in name) == inputs.are_videos:
            merges.append(tuple(int(side) for side in tensor.flatten()))
    lengths = [side for _, *grid in sizes for side in grid]
    shared = min(math.gcd(*lengths), _WIDEST)
    exact = [side for side in range(1, shared + 1) if math.gcd(*lengths) % side == 0]
    merges += [(side,) * len(sizes) for side in exact]
    merges = [sides for sides in merges if len(sides) == len(sizes)]
    for newline, around in ((False, 0), (True, 0), (True, 1)):
        yield from (_TokenGrid(sides, newline, around) for sides in merges)
    if inputs.are_videos:
        yield from (_TokenGrid(sides, times=2) for sides in merges)
    ragged = (side for side in range(2, _WIDEST) if side not in exact)
    yield from (_TokenGrid((side,) * len(sizes)) for side in ragged)


def _layouts(
    inputs: LayoutInputs, sizes: Sequence[Sequence[int]], token_grid: _TokenGrid, tiled: bool
) -> Layouts | None:
    pictures = _without_dropped(
        inputs, [token_grid.blocks(index, size) for index, size in enumerate(sizes)]
    )
    if sum(len(block) for picture in pictures for block in picture) != inputs.total:
        return None
    pixels = PixelTensor.of(inputs)
    edges_of = _edges_of(pixels, sizes, token_grid)
    for index, picture in enumerate(pictures):
        pictures[index] = [replace(block, edges=edges_of(index, block)) for block in picture]
    if not tiled:
        return inputs.per_sample([Layout(tuple(picture)) for picture in pictures])
    owners = None
    if pixels is not None and pixels.origins is not None and len(pixels.tensor) == len(sizes):
        owners = pixels.origins.owners(1)
    layouts = layouts_of_tiles(inputs, list(itertools.chain(*pictures)), owners)
    return None if layouts is None else inputs.per_sample(layouts)


def _without_dropped(inputs: LayoutInputs, pictures: list[list[Block]]) -> list[list[Block]]:
    """Without the cells that a mask says were dropped, as those that repeat the last frame."""
    masks = [
        tensor.flatten().tolist()
        for name, tensor in inputs.tensors.items()
        if "compression_mask" in name and ("video" in name) == inputs.are_videos
    ]
    cells = sum(block.rows * block.cols for picture in pictures for block in picture)
    if len(masks) != 1 or len(masks[0]) != cells:
        return pictures
    kept = iter(masks[0])
    return [
        [
            replace(block, kept=tuple(i for i in range(block.rows * block.cols) if next(kept)))
            for block in picture
        ]
        for picture in pictures
    ]


def _edges_of(
    pixels: PixelTensor | None, sizes: Sequence[Sequence[int]], token_grid: _TokenGrid
) -> Callable[[int, Block], Edges | None]:
    """A function that finds where the grid of a picture lies, from its part of the tensor."""
    if pixels is None or pixels.origins is None:
        return lambda index, block: None
    origins, shape = pixels.origins, tuple(pixels.tensor.shape)
    starts = np.cumsum([0, *(math.prod(size) for size in sizes)])

    def edges_of(index: int, block: Block) -> Edges | None:
        _, height, width = sizes[index]
        if pixels.holds_pictures and shape[0] == len(sizes):
            seen = min(height, shape[-2]), min(width, shape[-1])
            return raster_edges(origins, (index,), block.rows, block.cols, seen)
        if shape[0] == starts[-1]:
            patches = slice(starts[index], starts[index + 1])
            return patch_edges(origins, (patches,), (height, width), token_grid.merges[index])
        if len(shape) == 3 and shape[0] == len(sizes) and height * width <= shape[1]:
            patches = slice(0, height * width)
            return patch_edges(origins, (index, patches), (height, width), token_grid.merges[index])
        return None

    return edges_of
