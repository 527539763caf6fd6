"""The table of visual tokens, written out from layouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..visual_tokens import EDGES, VisualTokens
from .layout import Block, Layout
from .layout_inputs import LayoutInputs, Layouts

Sizes = Sequence[Sequence[tuple[int, int] | None]]
"""Width and height of every image of every sample."""

_PLACE = ("sample", "image", "tile", "frame", "row", "col")


def rows_of(
    positions: Sequence[NDArray[np.int64]],
    explained: Layouts,
    sizes: Sizes | None,
    shift: Sequence[int] | None = None,
) -> list[pd.DataFrame]:
    """One frame per image, with its tokens in order."""
    rows = []
    for sample, layouts in enumerate(explained):
        start = 0
        for index, layout in enumerate(layouts):
            size = sizes[sample][index] if sizes is not None else None
            frame = _image(layout, size)
            frame["sample"] = sample
            frame["image"] = index + (shift[sample] if shift is not None else 0)
            frame["position"] = positions[sample][start : start + len(frame)]
            start += len(frame)
            rows.append(frame)
    return rows


def table(rows: Sequence[pd.DataFrame]) -> VisualTokens:
    """All images' frames as one table, in (sample, position) order."""
    empty = pd.DataFrame({name: [] for name in (*_PLACE, "position", "kind", *EDGES)})
    joined = pd.concat(rows) if rows else empty
    joined = joined.sort_values(["sample", "position"], kind="stable")
    # Copies: pandas hands out arrays that must not be written to, of which torch warns.
    sample, image, tile, time, row, col, position = (
        np.array(joined[name], dtype=np.int64) for name in (*_PLACE, "position")
    )
    kind = np.array(joined["kind"], dtype=np.str_)
    box = np.array(joined[list(EDGES)], dtype=np.float64)
    return VisualTokens(sample, image, tile, time, row, col, position, kind, box)


def unplaced(inputs: LayoutInputs) -> Layouts:
    """Tokens whose layout is not understood, shared out among images only if that is certain."""
    explained = []
    for sample, positions in enumerate(inputs.positions):
        stretches = [len(stretch) for stretch in inputs.stretches(sample)]
        one_each = inputs.counts is not None and inputs.counts[sample] == len(stretches)
        shares = stretches if one_each else [len(positions)] if len(positions) else []
        explained.append([Layout((Block(1, n, kind="unplaced"),)) for n in shares])
    return explained


def _image(layout: Layout, size: tuple[int, int] | None) -> pd.DataFrame:
    tiles: dict[int, int] = {}  # so far, of each frame
    parts = []
    for block in layout.blocks:
        index = tiles.get(block.time, 0)
        tiles[block.time] = index + 1
        tile = index if block.tile is None else block.tile
        parts.append(_tokens(block, tile, size))
    return pd.concat(parts, ignore_index=True)


def _tokens(block: Block, tile: int, size: tuple[int, int] | None) -> pd.DataFrame:
    cells = block.rows * block.cols
    placed = block.kind == "patch"
    row, col = np.divmod(np.arange(cells), max(block.cols, 1))
    box = np.full((cells, 4), np.nan)
    if placed and block.edges is not None and size is not None:
        box = block.edges.boxes(size)
    body = np.column_stack([row, col, box]) if placed else np.full((cells, 6), -1.0)
    if not placed:
        body[:, 2:] = np.nan
    if block.kept is not None:
        body = body[list(block.kept)]
    kinds = np.full(len(body), block.kind, dtype="<U9")
    if block.newline:
        # Of an image so tall that all its columns are padding, newlines are left.
        ends = np.arange(1, block.rows + 1) * block.cols
        body = np.insert(body, ends, [-1, -1, *[np.nan] * 4], axis=0)
        kinds = np.insert(kinds, ends, "newline")
    around = np.array([[-1, -1, *[np.nan] * 4]])
    body = np.concatenate([around.repeat(block.before, 0), body, around.repeat(block.after, 0)])
    frame = pd.DataFrame(body, columns=["row", "col", *EDGES])
    separators = np.array(["separator"], dtype="<U9")
    frame["kind"] = np.concatenate(
        [separators.repeat(block.before), kinds, separators.repeat(block.after)]
    )
    frame["tile"], frame["frame"] = tile, block.time
    return frame
