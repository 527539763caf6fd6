"""Straight lines through measured places: from noisy brightness to exact edges.

Pixels have 256 levels and resampling blurs the borders, so one measured place is off by a fraction
of a pixel. A line through all of them is not, and where it says that the image became a whole
number of pixels, as every processor makes it, that number is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layout import Edges

_NEAR = 0.2  # pixels within which a measured length is a whole number
_CROOKED = 0.02  # share of the image by which a place may be off its line


def mean(field: NDArray[np.floating[Any]], keep: int) -> NDArray[np.float64]:
    """Mean over all axes but one, of what is not NaN; NaN where all is."""
    axes = tuple(axis for axis in range(field.ndim) if axis != keep % field.ndim)
    known = np.isfinite(field)
    count = known.sum(axis=axes)
    total = np.where(known, field, 0).sum(axis=axes, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Line:
    """A place in the image as a function of the index of a unit: start + step × index.

    Attributes:
        start: Place of the left (top) edge of the first unit, as a share of the image.
        step: Share of the image that one unit covers.
        units: How many units there are.
    """

    start: float
    step: float
    units: int

    @classmethod
    def through(cls, centers: NDArray[np.float64], pixels: int = 1) -> Line | None:
        """Fit the centres of units of ``pixels`` pixels each; None where they are on no line."""
        index = np.arange(len(centers)) + 0.5
        known = np.isfinite(centers)
        if known.sum() < 2:
            if len(centers) == 1 and known.all():  # one unit: taken as the whole
                return cls(0.0, 1.0, 1)
            return None
        step, start = np.polyfit(index[known], centers[known], 1)
        off = centers[known] - (start + step * index[known])
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


def grid_edges(across: Line | None, down: Line | None, rows: int, cols: int) -> Edges | None:
    """Edges of a grid that covers all units of both lines."""
    if across is None or down is None:
        return None
    return Edges(across.edges(cols), down.edges(rows))
