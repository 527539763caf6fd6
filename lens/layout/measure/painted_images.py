"""Where the processor puts the parts of an image, measured by showing it painted images.

Processors resize, pad, crop, cut into tiles and reorder patches, each in its own way, and report
little of it: a rule written down for one of them is silently wrong for the next. So the same call
is repeated with images of the same sizes whose brightness rises from left to right, or from top
to bottom: the value that arrives in an element of the pixel tensor says which place of the image
that element shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..layout import Edges
from .edge_fit import Line, grid_edges, mean

Again = Callable[[list[list[Image.Image]], Sequence[int]], Mapping[str, Tensor]]
"""Runs the processor call that made a batch once more, with other images of the same sizes.

Takes the images of some samples, and which samples of the batch these are.
"""

_DARK, _LIGHT = 16, 240  # away from both ends, so that resampling has room to overshoot
_TILT = 1 / 16  # of a ramp to its other axis: rounding to whole levels then differs line by line
_DIGIT = 16  # images told apart by one painted brightness


@dataclass(frozen=True, eq=False)
class View:
    """What the elements of one pixel tensor show.

    Attributes:
        x: Place in the width of the image, 0 to 1, of the shape of the tensor; NaN for padding.
        y: Place in its height.
        owner: Index of the image in the batch, counted through the samples; -1 for padding.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    owner: NDArray[np.int32]

    def owners(self, leading: int) -> NDArray[np.int32]:
        """The image that each unit shows, over the first axes of the tensor; -1 for none."""
        owners: NDArray[np.int32] = self.owner.reshape(*self.owner.shape[:leading], -1).max(axis=-1)
        return owners


class Views:
    """Measures a processor call when first asked.

    Args:
        again: The call.
        images: The images of every sample, for their sizes.
        samples: Indices of these samples in the batch of the call.
    """

    def __init__(
        self, again: Again, images: Sequence[Sequence[Image.Image]], samples: Sequence[int]
    ) -> None:
        self._again = again
        self._samples = samples
        self._sizes = [[image.size for image in row] for row in images]
        self._measured: dict[str, View] | None = None

    def __getitem__(self, name: str) -> View | None:
        """The view of one tensor, or None where it does not depend on the images."""
        if self._measured is None:
            self._measured = self._measure()
        return self._measured.get(name)

    def _measure(self) -> dict[str, View]:
        dark = self._paint(lambda size, _: np.full(size[::-1], _DARK))
        light = self._paint(lambda size, _: np.full(size[::-1], _LIGHT))
        across = self._paint(lambda size, _: _ramp(size))
        down = self._paint(lambda size, _: _ramp(size[::-1]).T)
        number = sum(map(len, self._sizes))
        digits = []
        for place in range(math.ceil(math.log(max(number, 2), _DIGIT)) if number > 1 else 0):
            digits.append(self._paint(lambda size, i, p=place: _digit(size, i, p)))  # type: ignore[misc]
        views = {}
        for name, zero in dark.items():
            if any(run[name].shape != zero.shape for run in (light, across, down, *digits)):
                continue  # its form depends on what the image shows: no places can be read off
            span = light[name] - zero
            shown = np.abs(span) > 0.98 * np.abs(span).max(initial=0.0)
            if not shown.any():
                continue
            safe = np.where(shown, span, np.float32(1))
            steep, flat = ((run[name] - zero) / safe for run in (across, down))
            scale = 1 - 2 * _TILT
            x = ((1 - _TILT) * steep - _TILT * flat) / scale
            y = ((1 - _TILT) * flat - _TILT * steep) / scale
            owner = np.zeros(zero.shape, dtype=np.int32)
            for place, run in enumerate(digits):
                level = (run[name] - zero) / safe * (_DIGIT - 1)
                owner += np.rint(level).astype(np.int32) * _DIGIT**place
            nowhere, nobody = np.float32(np.nan), np.int32(-1)
            views[name] = View(
                np.where(shown, x, nowhere),
                np.where(shown, y, nowhere),
                np.where(shown, owner, nobody),
            )
        return views

    def _paint(
        self, brightness: Callable[[tuple[int, int], int], NDArray[np.generic]]
    ) -> dict[str, NDArray[np.float32]]:
        index, nested = 0, []
        for row in self._sizes:
            painted = []
            for size in row:
                grey = brightness(size, index).astype(np.uint8)
                painted.append(Image.fromarray(np.repeat(grey[..., None], 3, axis=-1)))
                index += 1
            nested.append(painted)
        found = self._again(nested, self._samples)
        return {
            name: tensor.float().cpu().numpy()
            for name, tensor in found.items()
            if tensor.is_floating_point()
        }


def _ramp(size: tuple[int, int]) -> NDArray[np.float64]:
    """Brightness that rises from left to right, and a little from top to bottom."""
    x, y = ((np.arange(length) + 0.5) / length for length in size)
    return np.rint(_DARK + (_LIGHT - _DARK) * ((1 - _TILT) * x + _TILT * y[:, None]))


def _digit(size: tuple[int, int], image: int, place: int) -> NDArray[np.float64]:
    digit = image // _DIGIT**place % _DIGIT
    return np.full(size[::-1], _DARK + (_LIGHT - _DARK) * digit / (_DIGIT - 1))


def raster_edges(
    view: View | None, index: tuple[int, ...], rows: int, cols: int, seen: tuple[int, int]
) -> Edges | None:
    """Edges of a grid over one picture ``[channel, height, width]`` of a pixel tensor.

    Args:
        view: Of the tensor.
        index: Of the picture.
        rows: Rows of the grid.
        cols: Columns of the grid.
        seen: Height and width of the part of the picture that the grid covers.
    """
    if view is None:
        return None
    height, width = seen
    x, y = (field[index][..., :height, :width] for field in (view.x, view.y))
    across = Line.through(mean(x, keep=-1))
    down = Line.through(mean(y, keep=-2))
    return grid_edges(across, down, rows, cols)


def patch_edges(
    view: View | None, patches: tuple[slice | int, ...], grid: tuple[int, int], merge: int
) -> Edges | None:
    """Edges of the token grid over a stretch of patches, whatever their order.

    Args:
        view: Of the tensor.
        patches: Where the patches are: the indexed tensor is ``[patch, value]``.
        grid: Rows and columns of patches.
        merge: Side of the block of patches that makes one token.
    """
    if view is None:
        return None
    x, y = (mean(field[patches], keep=0)[: math.prod(grid)] for field in (view.x, view.y))
    if len(x) != math.prod(grid):
        return None
    rows, cols = grid
    pixels = patch_side(math.prod(view.x[patches].shape[1:]))
    best: tuple[float, Edges] | None = None
    # Patches come row by row, or block by block of those that become one token.
    for side in {1, merge} if rows % merge == 0 and cols % merge == 0 else {1}:
        shape = (rows // side, cols // side, side, side)
        place = np.arange(rows * cols).reshape(shape).transpose(0, 2, 1, 3).reshape(grid)
        across = Line.through(mean(x[place], keep=-1), pixels)
        down = Line.through(mean(y[place], keep=-2), pixels)
        if across is None or down is None:
            continue
        spread = float(np.ptp(x[place], axis=0).max() + np.ptp(y[place], axis=1).max())
        if best is None or spread < best[0]:
            edges = Edges(_merged(across, cols, merge), _merged(down, rows, merge))
            best = spread, edges
    return None if best is None else best[1]


def patch_side(values: int) -> int:
    """Side in pixels of a patch of so many values, 0 where that is unclear."""
    for channels in (3, 6, 1):
        side = math.isqrt(values // channels)
        if side**2 * channels == values:
            return side
    return 0


def _merged(line: Line, patches: int, merge: int) -> NDArray[np.float64]:
    """Edges of tokens of ``merge`` patches; the last may be cut short by the end of the grid."""
    tokens = math.ceil(patches / merge)
    edges = line.edges(tokens, 0, tokens * merge)
    edges[-1] = min(edges[-1], line.edges(1)[-1])
    return edges
