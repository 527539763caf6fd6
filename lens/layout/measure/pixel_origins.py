"""Which place of which image the elements of a pixel tensor show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class PixelOrigins:
    """Which place of which image every element of one pixel tensor shows."""

    x: NDArray[np.float32]  # place in the width, 0 to 1, for each element; NaN for padding
    y: NDArray[np.float32]  # place in its height
    owner: NDArray[np.int32]  # index of the image, counted through the samples; -1 for padding

    def owners(self, leading: int) -> NDArray[np.int32]:
        """The image that is shown at each index of the ``leading`` first axes; -1 for none."""
        axes = tuple(range(leading, self.owner.ndim))
        owners: NDArray[np.int32] = once(self.owner, axes).max(axis=axes)
        return owners


def once(field: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """The same without what is only repeated along some axes, each of length 1 then."""
    repeated = (axis in axes and not field.strides[axis] for axis in range(field.ndim))
    return field[tuple(slice(1) if again else slice(None) for again in repeated)]


def mean(field: NDArray[np.floating[Any]], keep: int) -> NDArray[np.float64]:
    """Mean over all axes but one, of what is not NaN; NaN where all is."""
    axes = tuple(axis for axis in range(field.ndim) if axis != keep % field.ndim)
    return means(field, axes).reshape(-1)


def means(field: NDArray[np.floating[Any]], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Mean over some axes, which stay, of what is not NaN; NaN where all is."""
    field = once(field, axes)
    known = np.isfinite(field)
    count = known.sum(axis=axes, keepdims=True)
    total = np.where(known, field, 0).sum(axis=axes, dtype=np.float64, keepdims=True)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
