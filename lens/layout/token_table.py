"""The table of visual tokens, written out from layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from ..visual_tokens import VisualTokens
from .layout import Block, Layout
from .layout_inputs import LayoutInputs, Layouts

Sizes = Sequence[Sequence[tuple[int, int] | None]]
"""Width and height of every image of every sample."""

# Rows, columns, boxes and kinds of some tokens.
Cells = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.str_]]


def rows_of(
    positions: Sequence[NDArray[np.int64]],
    explained: Layouts,
    sizes: Sizes | None,
    shift: Sequence[int] | None = None,
) -> list[VisualTokens]:
    """One table per image, with its tokens in order."""
    rows = []
    for sample, layouts in enumerate(explained):
        start = 0
        for index, layout in enumerate(layouts):
            size = sizes[sample][index] if sizes is not None else None
            tile, time, (row, col, box, kind) = _image(layout, size)
            here = np.full(len(row), sample)
            image = np.full(len(row), index + (shift[sample] if shift is not None else 0))
            position = positions[sample][start : start + len(row)]
            start += len(row)
            rows.append(VisualTokens(here, image, tile, time, row, col, position, kind, box))
    return rows


def table(rows: Sequence[VisualTokens]) -> VisualTokens:
    """All images' tables as one, in (sample, position) order."""
    none = np.zeros(0, dtype=np.int64)
    kinds, boxes = np.zeros(0, dtype=np.str_), np.zeros((0, 4))
    empty = VisualTokens(none, none, none, none, none, none, none, kinds, boxes)
    parts = rows or [empty]
    joined = VisualTokens(
        *(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(empty))
    )
    return joined.select(np.lexsort((joined.position, joined.sample)))


def unplaced(inputs: LayoutInputs) -> Layouts:
    """Tokens whose layout is not understood, shared out among images only if that is certain."""
    explained = []
    for sample, positions in enumerate(inputs.positions):
        stretches = [len(stretch) for stretch in inputs.stretches(sample)]
        one_each = inputs.counts is not None and inputs.counts[sample] == len(stretches)
        shares = stretches if one_each else [len(positions)] if len(positions) else []
        explained.append([Layout((Block(1, n, kind="unplaced"),)) for n in shares])
    return explained


def _image(
    layout: Layout, size: tuple[int, int] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], Cells]:
    """Tile and frame of every token of an image, and its cell."""
    tiles: dict[int, int] = {}  # so far, of each frame
    tile, time, cells = [], [], []
    for block in layout.blocks:
        index = tiles.get(block.time, 0)
        tiles[block.time] = index + 1
        tile.append(index if block.tile is None else block.tile)
        time.append(block.time)
        cells.append(_tokens(block, size))
    lengths = [len(row) for row, *_ in cells]
    row, col, box, kind = (np.concatenate(field) for field in zip(*cells, strict=True))
    return np.repeat(tile, lengths), np.repeat(time, lengths), (row, col, box, kind)


def _tokens(block: Block, size: tuple[int, int] | None) -> Cells:
    cells = block.rows * block.cols
    if block.kind == "patch":
        row, col = np.divmod(np.arange(cells), max(block.cols, 1))
    else:
        row = col = np.full(cells, -1)
    box = np.full((cells, 4), np.nan)
    if block.kind == "patch" and block.edges is not None and size is not None:
        box = block.edges.boxes(size)
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
    row, col = (np.pad(field, around, constant_values=-1) for field in (row, col))
    box = np.pad(box, (around, (0, 0)), constant_values=np.nan)
    separators = [np.full(number, "separator", dtype="<U9") for number in around]
    return row, col, box, np.concatenate([separators[0], kind, separators[1]])
