"""Straight lines through measured places: the exact edges of a grid from noisy brightness.

Pixels have 256 levels and resampling blurs the borders, so one measured place is off by a fraction
of a pixel. A line through all of them is not, and where it says that the image became a whole
number of pixels, as every processor makes it, that number is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from ..layout import Edges
from .pixel_origins import PixelOrigins, mean

_NEAR = 0.2  # pixels within which a measured length is a whole number
_CROOKED = 0.02  # share of the image by which a place may be off its line


@dataclass(frozen=True)
class LinearFit:
    """A place in the image as a function of the index of a unit: start + step × index."""

    start: float  # place of the left (top) edge of the first unit, as a share of the image
    step: float  # share of the image that one unit covers
    units: int  # how many units there are

    @classmethod
    def through(cls, centers: NDArray[np.float64], pixels: int = 1) -> LinearFit | None:
        """Fit the centres of units of ``pixels`` pixels each; None where they are on no line."""
        index = np.arange(len(centers)) + 0.5
        known = np.isfinite(centers)
        if known.sum() < 2:
            if len(centers) == 1 and known.all():  # one unit: taken as the whole
                return cls(0.0, 1.0, 1)
            return None
        # Least squares.
        seen, middle = centers[known], index[known].mean()
        away = index[known] - middle
        step = float(away @ seen / (away @ away))
        start = float(seen.mean()) - step * middle
        off = seen - (start + step * index[known])
        if step <= 0 or np.abs(off).max() > max(_CROOKED, step):
            return None
        if pixels:
            length, offset = pixels / step, -start / step * pixels
            whole, at = round(length), round(offset)
            if abs(length - whole) < _NEAR and abs(offset - at) < _NEAR:
                step, start = pixels / whole, -at / whole
        return cls(float(start), float(step), len(centers))

    def edges(
        self, cells: int, first: float = 0.0, last: float | None = None
    ) -> NDArray[np.float64]:
        """Edges of equal cells between two unit edges, ``[cell + 1]``."""
        end = self.units if last is None else last
        return self.start + self.step * np.linspace(first, end, cells + 1)


def grid_edges(
    across: LinearFit | None, down: LinearFit | None, rows: int, cols: int
) -> Edges | None:
    """Edges of a grid that covers all units of both lines."""
    if across is None or down is None:
        return None
    return Edges(across.edges(cols), down.edges(rows))


def raster_edges(
    origins: PixelOrigins | None,
    index: tuple[int, ...],
    rows: int,
    cols: int,
    seen: tuple[int, int],
) -> Edges | None:
    """Edges of a grid over one picture ``[channel, height, width]``, ``index`` in a pixel tensor.

    ``seen`` is height and width of the part of the picture that the grid covers.
    """
    if origins is None:
        return None
    height, width = seen
    x, y = (field[index][..., :height, :width] for field in (origins.x, origins.y))
    across = LinearFit.through(mean(x, keep=-1))
    down = LinearFit.through(mean(y, keep=-2))
    return grid_edges(across, down, rows, cols)


def patch_edges(
    origins: PixelOrigins | None,
    patches: tuple[slice | int, ...],
    grid: tuple[int, int],
    merge: int,
) -> Edges | None:
    """Edges of the token grid over a stretch of patches ``[patch, value]``, whatever their order.

    ``merge`` is the side of the block of patches that makes one token.
    """
    if origins is None:
        return None
    x, y = (mean(field[patches], keep=0)[: math.prod(grid)] for field in (origins.x, origins.y))
    if len(x) != math.prod(grid):
        return None
    rows, cols = grid
    pixels = patch_side(math.prod(origins.x[patches].shape[1:]))
    best: tuple[float, Edges] | None = None
    # Patches come row by row, or block by block of those that become one token.
    for side in {1, merge} if rows % merge == 0 and cols % merge == 0 else {1}:
        place = rearrange(
            np.arange(rows * cols),
            "(row col high wide) -> (row high) (col wide)",
            row=rows // side,
            high=side,
            wide=side,
        )
        across = LinearFit.through(mean(x[place], keep=-1), pixels)
        down = LinearFit.through(mean(y[place], keep=-2), pixels)
        if across is None or down is None:
            continue
        spread = float(np.ptp(x[place], axis=0).max() + np.ptp(y[place], axis=1).max())
        if best is None or spread < best[0]:
            edges = Edges(_token_edges(across, cols, merge), _token_edges(down, rows, merge))
            best = spread, edges
    return None if best is None else best[1]


def patch_side(values: int) -> int:
    """Side in pixels of a patch of so many values, 0 where that is unclear."""
    for channels in (3, 6, 1):
        side = math.isqrt(values // channels)
        if side**2 * channels == values:
            return side
    return 0


def _token_edges(fit: LinearFit, patches: int, merge: int) -> NDArray[np.float64]:
    """Edges of tokens of ``merge`` patches; the last may be cut short by the end of the grid."""
    tokens = math.ceil(patches / merge)
    edges = fit.edges(tokens, 0, tokens * merge)
    edges[-1] = min(edges[-1], fit.edges(1)[-1])
    return edges
