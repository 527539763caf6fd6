"""The images of a token table in words: one row per image, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd


class ImageRow(NamedTuple):
    """What a table of visual tokens says of one image."""

    sample: int
    image: int
    tokens: int
    layout: str


COLUMNS = ("sample", "image", "tokens", "layout")


def image_rows(frame: pd.DataFrame, most: int) -> Iterator[ImageRow]:
    """The first images of a table as ``VisualTokens.frame``, in order."""
    numbers = frame[["sample", "image"]].drop_duplicates().itertuples(index=False, name=None)
    for sample, image in list(numbers)[:most]:
        mine = frame[(frame["sample"] == sample) & (frame["image"] == image)]
        yield ImageRow(int(sample), int(image), len(mine), ", ".join(_layout(mine)))


def _layout(rows: pd.DataFrame) -> Iterator[str]:
    frames, tiles = rows["frame"].nunique(), rows["tile"].nunique()
    if frames > 1:
        yield f"{frames} frames"
    placed = rows[rows["row"] >= 0]
    grids = placed.groupby(["frame", "tile"])[["row", "col"]].max() + 1
    shapes = [f"{row} × {col}" for row, col in grids.drop_duplicates().to_numpy().tolist()]
    if shapes:
        yield f"{tiles} tiles of {' or '.join(shapes)}" if tiles > 1 else " or ".join(shapes)
    for kind, count in rows["kind"][rows["row"] < 0].value_counts().items():
        yield f"{count} {kind}" + (" tokens" if count > 1 else " token")
