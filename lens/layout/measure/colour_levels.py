"""What a processor makes of the three colours, learned once: then one painting tells both places.

Processors treat colours alike and apart: each has a scale and an offset, and no pixel of one gets
into another. Where that was seen to be so, red can say how far across a place is, green how far
down, and blue, in one brightness that no padding has, that the element shows the image at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]

DARK, LIGHT = 16, 240  # the painted range, with room for resampling to overshoot at both ends
# Brightness of blue, as a share of the painted range: far from black, grey, white and mean colours.
SHOWN = 3 / 14
# What it may be off by: less than a whole level, and than a twentieth of some padding.
_BLURRED = 0.006
# Where it is off by more, nothing of the image is in it; and how many may be off by less.
_UNLIKE, _BORDERS = 0.15, 0.1
# What places told by colours may be off from those told by grey, as a share of the painted range.
_SAME = 0.02


@dataclass(frozen=True, eq=False)
class ColourLevels:
    """What darkness is in each element of a unit of a pixel tensor, and how much light adds to it.

    A unit is what the ``axis`` of the tensor counts: its channels, or the values of a patch.
    """

    axis: int  # counted from the end
    zero: Values  # value where the painted range starts, ``[element]``
    span: Values  # how much its whole range adds, ``[element]``
    colours: tuple[NDArray[np.intp], ...]  # elements of red, green and blue, place by place

    @classmethod
    def learned(
        cls, zero: Values, span: Values, shown: NDArray[np.bool_], painted: Values, told: Values
    ) -> ColourLevels | None:
        """The levels of a tensor that was measured in grey, and painted in colours once.

        ``told`` ``[colour, …]`` is what the grey paintings say that each colour would be at every
        element. None where colours are mixed, or what they tell is not what grey told.
        """
        axis = unit_axis(zero)
        zeros, spans, level = (
            np.moveaxis(field, axis, 0).reshape(field.shape[axis], -1)
            for field in (zero, span, painted)
        )
        seen = np.moveaxis(shown, axis, 0).reshape(shown.shape[axis], -1)
        shares = np.moveaxis(told, axis, 1).reshape(3, len(zeros), -1)
        if not seen.any(1).all() or len(zeros) % 3:
            return None
        low, high = (_usual(field, seen) for field in (zeros, spans))
        level = (level - low[:, None]) / high[:, None]
        off = np.where(seen, np.abs(level - shares), 0).max(-1)
        matches = off <= _SAME
        if not (matches.sum(0) == 1).all():
            return None
        colours = tuple(np.flatnonzero(match) for match in matches)
        if len({len(elements) for elements in colours}) != 1:
            return None
        return cls(axis, low, high, colours)

    def everywhere(self, ndim: int) -> tuple[Values, Values]:
        """Zero and span in a form that goes with a tensor of ``ndim`` axes."""
        shape = [1] * ndim
        shape[self.axis] = len(self.zero)
        return self.zero.reshape(shape), self.span.reshape(shape)

    def brightness(self, values: Values) -> Values:
        """What an image shows of each colour, ``[..., colour]`` of 0 to 255, by what arrived of it.

        ``values`` are ``[..., element]``, of whole units.
        """
        shares = (values - self.zero) / self.span
        brightness: Values = DARK + (LIGHT - DARK) * shares[..., np.stack(self.colours)].mean(-1)
        return brightness

    def told(self, painted: Values) -> tuple[Values, Values, NDArray[np.bool_]] | None:
        """Red and green levels at every element, and whether it shows the image, by a painting.

        None where the values are none that this painting could have.
        """
        values = np.moveaxis(painted, self.axis, 0)
        if len(values) != len(self.zero):
            return None
        flat = values.reshape(len(values), -1)
        red, green, blue = (
            (flat[of] - self.zero[of, None]) / self.span[of, None] for of in self.colours
        )
        off = np.abs(blue - SHOWN)
        seen = off <= _BLURRED
        # Between shown and not shown are only the borders.
        if not seen.any() or ((off > _BLURRED) & (off <= _UNLIKE)).sum() > _BORDERS * seen.sum():
            return None
        for level in (red, green):
            if ((level[seen] < -_SAME) | (level[seen] > 1 + _SAME)).any():
                return None
        # What was read off one colour holds for the same place in the others.
        place = np.empty(len(values), dtype=np.intp)
        for of in self.colours:
            place[of] = np.arange(len(of))
        one = (len(red), *values.shape[1:])
        whole = (field.reshape(one).take(place, 0) for field in (red, green, seen))
        across, down, shown = (np.moveaxis(field, 0, self.axis) for field in whole)
        return across, down, shown


def unit_axis(tensor: Values) -> int:
    """The axis of channels of a tensor of pictures, or of the values of a patch."""
    return -3 if tensor.ndim >= 4 and tensor.shape[-3] in (1, 3) else -1


def shows(span: Values) -> NDArray[np.bool_]:
    """Which elements light adds to as much as to any of their kind: those that are no padding."""
    others = tuple(axis for axis in range(span.ndim) if axis != span.ndim + unit_axis(span))
    size = np.abs(span)
    most = size.max(axis=others, keepdims=True, initial=0.0)
    shown: NDArray[np.bool_] = size > 0.98 * np.maximum(most, size.max(initial=0.0) / 2)
    return shown


def _usual(field: Values, seen: NDArray[np.bool_]) -> Values:
    """The value that each element has where it shows the image."""
    usual = [np.median(values[where]) for values, where in zip(field, seen, strict=True)]
    return np.array(usual, dtype=np.float32)
