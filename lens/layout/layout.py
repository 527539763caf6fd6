"""What an image's visual tokens are made of: blocks, one after another in the sequence.

Every layout that a multimodal LLM has been seen to use is a sequence of blocks: a raster; a raster
with a newline behind every row; tiles and a thumbnail; frames; a handful of learned queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from einops import rearrange
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Edges:
    """Where the lines of a grid lie in the original image, as fractions of its width and height."""

    x: NDArray[np.float64]  # left edge of every column, right edge of the last, ``[column + 1]``
    y: NDArray[np.float64]  # top edge of every row and the bottom edge of the last, ``[row + 1]``

    def boxes(self, size: tuple[int, int]) -> NDArray[np.float64]:
        """Boxes in pixels of an image of ``size`` (width, height), ``[row * column, 4]``."""
        x, y = self.x.clip(0, 1) * size[0], self.y.clip(0, 1) * size[1]
        top, left = np.meshgrid(y[:-1], x[:-1], indexing="ij")
        bottom, right = np.meshgrid(y[1:], x[1:], indexing="ij")
        return rearrange([left, top, right, bottom], "edge row col -> (row col) edge")


@dataclass(frozen=True)
class Block:
    """One raster of visual tokens and the tokens without a place around it.

    Attributes:
        rows: Rows of the raster.
        cols: Columns of the raster.
        newline: Whether one visual token stands behind every row.
        before: Visual tokens without a place before the raster.
        after: Visual tokens without a place behind the raster.
        time: Index of the frame; blocks of one tile and several frames are a video.
        tile: Index of the tile; None for the index of the block among those of its frame.
        kept: Which cells have a token, as indices into the raster; None for all of them.
        kind: ``patch``, or ``latent`` for learned queries, whose rows and columns mean nothing.
        edges: Where the grid lies in the image, where that is known.
    """

    rows: int
    cols: int
    newline: bool = False
    before: int = 0
    after: int = 0
    time: int = 0
    tile: int | None = None
    kept: tuple[int, ...] | None = None
    kind: Literal["patch", "latent", "unplaced"] = "patch"
    edges: Edges | None = field(default=None, compare=False)

    def __len__(self) -> int:
        cells = self.rows * self.cols if self.kept is None else len(self.kept)
        return self.before + cells + self.newline * self.rows + self.after


@dataclass(frozen=True)
class Layout:
    """How the visual tokens of one image follow one another.

    State it where the layout of a model is not understood: a 4 × 4 thumbnail and then 8 rows of 6
    with a newline token behind every row are ``Layout((Block(4, 4), Block(8, 6, newline=True)))``.

    Attributes:
        blocks: In the order of the sequence.
    """

    blocks: tuple[Block, ...]

    def __len__(self) -> int:
        return sum(len(block) for block in self.blocks)

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Layout:
        """The layout of these blocks."""
        return cls(tuple(blocks))
