"""Where every visual token is: its place in the sequence and its place in the image."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """One row per visual token of a batch, in (sample, position) order.

    Attributes:
        sample: Row of the batch, ``[token]``.
        image: Index of the image within its sample, ``[token]``.
        row: Row of the token's cell in its image's grid, ``[token]``.
        col: Column of the cell, ``[token]``.
        position: Index in the (padded) sequence, ``[token]``.
        box: Left, top, right, bottom of the cell in pixels of the original image,
            ``[token, 4]``; NaN where the batch was made from tensors without the image.
    """

    sample: NDArray[np.int64]
    image: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    position: NDArray[np.int64]
    box: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.sample)
        for field in fields(self):
            array = getattr(self, field.name)
            expected = (n, 4) if field.name == "box" else (n,)
            if array.shape != expected:
                raise ValueError(f"VisualTokens.{field.name}: {array.shape}, expected {expected}")

    def __len__(self) -> int:
        return len(self.sample)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table: sample, image, row, col, position, left, top, right, bottom."""
        columns: dict[str, Any] = {
            name: getattr(self, name) for name in ("sample", "image", "row", "col", "position")
        }
        for index, edge in enumerate(("left", "top", "right", "bottom")):
            columns[edge] = self.box[:, index]
        return pd.DataFrame(columns)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> VisualTokens:
        """The rows that ``keep`` (a mask or indices) picks."""
        return VisualTokens(*(getattr(self, field.name)[keep] for field in fields(self)))

    def grid(self, sample: int = 0, image: int = 0) -> tuple[int, int]:
        """Rows and columns of one image's grid."""
        here = (self.sample == sample) & (self.image == image)
        if not here.any():
            raise IndexError(f"no visual tokens for image {image} of sample {sample}")
        return int(self.row[here].max()) + 1, int(self.col[here].max()) + 1
