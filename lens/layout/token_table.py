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
            cells = layout.cells
            box = (
                cells.box * (*size, *size) if size is not None else np.full_like(cells.box, np.nan)
            )
            here = np.full(len(layout), sample)
            image = np.full(len(layout), index + (shift[sample] if shift is not None else 0))
            position = positions[sample][start : start + len(layout)]
            start += len(layout)
            tile, time, row, col = cells.tile, cells.time, cells.row, cells.col
            rows.append(VisualTokens(here, image, tile, time, row, col, position, cells.kind, box))
    return rows


def table(rows: Sequence[VisualTokens]) -> VisualTokens:
    """All images' tables as one, in (sample, position) order."""
    none = np.zeros(0, dtype=np.int64)
    kinds, boxes = np.zeros(0, dtype=np.str_), np.zeros((0, 4))
    empty = VisualTokens(none, none, none, none, none, none, none, kinds, boxes)
    if len(rows) == 1:  # whose tokens are in order
        return rows[0]
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
