"""Where every visual token is: its place in the sequence and its place in the image.

A number of visual tokens says nothing about where they look: tiles, frames, newline rows and
learned queries all share one placeholder id. This table says it for each, or says that it is not
known; nothing here is ever filled in by a guess.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .html_parts import block, note, table
from .image_rows import COLUMNS, image_rows

_MOST_SHOWN = 12  # images in a notebook
KINDS = ("patch", "newline", "separator", "latent", "unplaced")
EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """One row per visual token of a batch, in (sample, position) order.

    Attributes:
        sample: Row of the batch, ``[token]``.
        image: Index of the image within its sample, ``[token]``; videos are counted on after the
            sample's images.
        tile: Index of the tile in the order in which the model sees the tiles of the image,
            ``[token]``; 0 where the image is not cut.
        time: Index of the frame, ``[token]``; 0 for stills. A model that merges neighbouring
            frames has one index for the merged ones.
        row: Row of the token's cell in the grid of its tile and frame, ``[token]``; -1 for tokens
            without a place.
        col: Column of the cell, ``[token]``; -1 for tokens without a place.
        position: Index in the (padded) sequence, ``[token]``.
        kind: ``[token]``, one of ``KINDS``: a ``patch`` has a cell; a ``newline`` ends a row of
            a grid and a ``separator`` stands between grids; a ``latent`` is a learned query, which
            has no place; ``unplaced`` is a token whose layout is not understood.
        box: Left, top, right, bottom of the cell in pixels of the original image,
            ``[token, 4]``; NaN for tokens without a place, and for all where the batch was made
            from tensors without the images.
    """

    sample: NDArray[np.int64]
    image: NDArray[np.int64]
    tile: NDArray[np.int64]
    time: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    position: NDArray[np.int64]
    kind: NDArray[np.str_]
    box: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.sample)
        for field in fields(self):
            array = getattr(self, field.name)
            expected = (n, 4) if field.name == "box" else (n,)
            if array.shape != expected:
                raise ValueError(f"VisualTokens.{field.name}: {array.shape}, expected {expected}")

    def __repr__(self) -> str:
        images = len(np.unique(np.stack([self.sample, self.image]), axis=1).T)
        kinds = dict(Counter(self.kind.tolist()))
        told = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        return f"VisualTokens({len(self)} tokens of {images} images: {told or 'none'})"

    def _repr_html_(self) -> str:
        rows = image_rows(self.frame, _MOST_SHOWN)
        return block(repr(self), table(COLUMNS, rows), note("frame has one row per token"))

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def placed(self) -> NDArray[np.bool_]:
        """Which tokens have a cell, ``[token]``."""
        placed: NDArray[np.bool_] = self.kind == "patch"
        return placed

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table: sample, image, tile, frame, row, col, position, kind and the box's edges."""
        columns: dict[str, Any] = {
            "frame" if field.name == "time" else field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "box"
        }
        for index, edge in enumerate(EDGES):
            columns[edge] = self.box[:, index]
        return pd.DataFrame(columns)

    def select(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> VisualTokens:
        """The rows that ``keep`` (a mask or indices) picks."""
        return VisualTokens(*(getattr(self, field.name)[keep] for field in fields(self)))

    def grid(
        self, sample: int = 0, image: int = 0, tile: int = 0, time: int = 0
    ) -> tuple[int, int]:
        """Rows and columns of the grid of one tile and frame of one image.

        Raises:
            IndexError: No token has a place there.
        """
        here = (self.sample == sample) & (self.image == image) & self.placed
        here &= (self.tile == tile) & (self.time == time)
        if not here.any():
            raise IndexError(
                f"no visual token has a place in tile {tile}, frame {time} of image {image} of "
                f"sample {sample}"
            )
        return int(self.row[here].max()) + 1, int(self.col[here].max()) + 1
