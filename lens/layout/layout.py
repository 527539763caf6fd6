"""What an image's visual tokens are made of: blocks, one after another in the sequence.

Every layout that a multimodal LLM has been seen to use is a sequence of blocks: a raster; a raster
with a newline behind every row; tiles and a thumbnail; frames; a handful of learned queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from einops import rearrange
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Edges:
    """Where the lines of a grid lie in the original image, as fractions of its width and height."""

    x: NDArray[np.float64]  # left edge of every column, right edge of the last, ``[column + 1]``
    y: NDArray[np.float64]  # top edge of every row and the bottom edge of the last, ``[row + 1]``

    def boxes(self) -> NDArray[np.float64]:
        """Boxes of the cells as fractions of the image, ``[row * column, 4]``."""
        x, y = self.x.clip(0, 1), self.y.clip(0, 1)
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


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of an image's visual tokens, in the order of the sequence."""

    tile: NDArray[np.int64]
    time: NDArray[np.int64]  # index of the frame
    row: NDArray[np.int64]  # -1 for tokens without a place
    col: NDArray[np.int64]
    box: NDArray[np.float64]  # left, top, right and bottom, as fractions of the image; or NaN
    kind: NDArray[np.str_]


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

    @cached_property
    def cells(self) -> Cells:
        """The cell of every token. Made once, because layouts are remembered by image size."""
        tiles: dict[int, int] = {}  # so far, of each frame
        tile, time, fields = [], [], []
        for block in self.blocks:
            index = tiles.get(block.time, 0)
            tiles[block.time] = index + 1
            tile.append(index if block.tile is None else block.tile)
            time.append(block.time)
            fields.append(_cells(block))
        lengths = [len(row) for row, *_ in fields]
        row, col, box, kind = (np.concatenate(field) for field in zip(*fields, strict=True))
        return Cells(np.repeat(tile, lengths), np.repeat(time, lengths), row, col, box, kind)

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Layout:
        """The layout of these blocks."""
        return cls(tuple(blocks))


def _cells(
    block: Block,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.str_]]:
    """Rows, columns, boxes and kinds of a block's tokens."""
    cells = block.rows * block.cols
    if block.kind == "patch":
        row, col = np.divmod(np.arange(cells), max(block.cols, 1))
    else:
        row = col = np.full(cells, -1)
    box = np.full((cells, 4), np.nan)
    if block.kind == "patch" and block.edges is not None:
        box = block.edges.boxes()
    if block.kept is not None:
        kept = list(block.kept)
        row, col, box = row[kept], col[kept], box[kept]
    kind = np.full(len(row), block.kind, dtype="<U9")
    if block.newline:
        # Of an image so tall that all its columns are padding, newlines are left.
        ends = np.arange(1, block.rows + 1) * block.cols
        row, col = np.insert(row, ends, -1), np.insert(col, ends, -1)
        box, kind = np.insert(box, ends, np.nan, axis=0), np.insert(kind, ends, "newline")
    around = (block.before, block.after)
    if not any(around):
        return row, col, box, kind
    row, col = (np.pad(field, around, constant_values=-1) for field in (row, col))
    box = np.pad(box, (around, (0, 0)), constant_values=np.nan)
    separators = [np.full(number, "separator", dtype="<U9") for number in around]
    return row, col, box, np.concatenate([separators[0], kind, separators[1]])
