"""The user's own image, found again in what the processor made of it.

A row and a column in the middle of some pictures are compared with the image, resized to where they
should come from. If that is right they differ by rounding and by the way of resizing. How much they
differ where they are moved by a pixel, or zoomed by two, says what that is worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .colour_levels import ColourLevels, Values
from .placing_rules import Placing, TensorForm

_PICTURES = 3  # that are looked at
_SHORTEST = 6  # units along a strip, so that there is somewhere to move it
_GAP = 3.0  # how much larger what is resized may be, made smaller by whole pixels before
_BEYOND = 2  # units by which the ends move where a strip is zoomed; it is moved by one


@dataclass(frozen=True, eq=False)
class Arrived:
    """One image, and the pixel tensor that a processor made of it."""

    image: Image.Image
    form: TensorForm
    tensor: Tensor
    levels: ColourLevels
    resample: Image.Resampling  # how the processor resizes

    def off(self, placing: Placing) -> float:
        """How far a row of the middle picture is off, in levels of brightness."""
        strip = self._strip(self._pictures(placing, 1)[0], 0)
        return np.inf if strip is None else _apart(*strip)

    def off_and_beside(self, placing: Placing) -> list[tuple[float, float]]:
        """How far rows are off on average, and how far beside at least; then columns.

        Infinity and 0 where there are none to compare.
        """
        found = []
        for axis in (0, 1):
            strips = [self._strip(one, axis) for one in self._pictures(placing, _PICTURES)]
            known = [strip for strip in strips if strip is not None]
            if not known:
                return [(np.inf, 0.0)]
            moved = [(told[1:], seen[:-1]) for told, seen in known]
            zoomed = [(told[_zoomed(len(told))], seen) for told, seen in known]
            off = [np.mean([_apart(*pair) for pair in pairs]) for pairs in (known, moved, zoomed)]
            found.append((float(off[0]), float(min(off[1:]))))
        return found

    def _pictures(self, placing: Placing, number: int) -> list[_Picture]:
        """So many pictures; patches are one."""
        if not self.form.pictures:
            cols, rows = self.form.side
            cells = np.lexsort((placing.x[:, 0], placing.y[:, 0])).reshape(rows, cols)
            across, down = placing.pixels[0] / self.form.patch
            x = _Line(placing.x[cells[0], 0], across)
            return [_Picture(0, x, _Line(placing.y[cells[:, 0], 0], down), cells)]
        ends = np.linspace(0, self.form.pictures, number + 1)
        found = []
        for index in sorted({int(middle) for middle in (ends[1:] + ends[:-1]) / 2}):
            across, down = (float(length) for length in placing.pixels[index])
            x, y = _Line(placing.x[index], across), _Line(placing.y[index], down)
            found.append(_Picture(index, x, y))
        return found

    def _strip(self, picture: _Picture, axis: int) -> tuple[Values, Values] | None:
        """The middle row (or column), as the image tells it and as it arrived, ``[unit, colour]``.

        None where the picture shows too little of the image.
        """
        lines = picture.x, picture.y
        along, across = lines[axis].inside(), lines[1 - axis].inside()
        if along.stop - along.start < _SHORTEST or across.stop == across.start:
            return None
        middle = (across.start + across.stop) // 2
        across = slice(middle, middle + 1)
        columns, rows = (along, across) if axis == 0 else (across, along)
        (left, right), (top, bottom) = picture.x.edges(columns), picture.y.edges(rows)
        wide, high = self.image.size
        size = columns.stop - columns.start, rows.stop - rows.start
        # A patch is seen by its mean.
        resample = self.resample if self.form.pictures else Image.Resampling.BOX
        box = (left * wide, top * high, right * wide, bottom * high)
        told = self.image.resize(size, resample, box, reducing_gap=_GAP)
        seen = self._seen(picture, rows, columns)
        return np.asarray(told, dtype=np.float32).reshape(-1, 3), seen.reshape(-1, 3)

    def _seen(self, picture: _Picture, rows: slice, columns: slice) -> Values:
        """Brightness that arrived in a part of a picture, ``[..., colour]``."""
        if picture.cells is None:
            values = self.tensor.reshape(-1, *self.form.shape[-3:])
            chosen = values[picture.index, :, rows, columns].float().cpu().numpy()
            return self.levels.brightness(np.moveaxis(chosen, 0, -1))
        patches = picture.cells[rows, columns].reshape(-1)
        chosen = np.moveaxis(self.tensor[patches].float().cpu().numpy(), self.levels.axis, -1)
        units = chosen.reshape(len(patches), -1, chosen.shape[-1])
        seen: Values = self.levels.brightness(units).mean(1)
        return seen


@dataclass(frozen=True, eq=False)
class _Line:
    """The middles of a picture's columns or rows, as places in the image."""

    middles: NDArray[np.float64]
    length: float  # columns or rows of the whole image

    def inside(self) -> slice:
        """Those that lie wholly in the image."""
        found = np.flatnonzero(np.abs(self.middles - 0.5) < 0.5 * (1 - 0.99 / self.length))
        return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)

    def edges(self, part: slice) -> tuple[float, float]:
        """Where a part begins and ends in the image."""
        half = 0.5 / self.length
        first, last = self.middles[part.start], self.middles[part.stop - 1]
        return max(float(first - half), 0.0), min(float(last + half), 1.0)


@dataclass(frozen=True, eq=False)
class _Picture:
    """One picture of a tensor."""

    index: int
    x: _Line
    y: _Line
    cells: NDArray[np.intp] | None = None  # ``[row, column]`` the patch of each unit


def _apart(told: Values, seen: Values) -> float:
    return float(np.abs(told - seen).mean())


def _zoomed(length: int) -> NDArray[np.intp]:
    """Indices of a strip that is a little larger, its middle where it was."""
    places = np.linspace(_BEYOND, length - 1 - _BEYOND, length)
    indices: NDArray[np.intp] = np.rint(places).astype(np.intp)
    return indices
