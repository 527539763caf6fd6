"""What is drawn as one picture: an image, or one view or frame of it, with the tokens it shows.

Tokens whose pixels are known lie on the image. Those of which only row and column are known (of a
video, or of a batch of tensors) lie on a blank grid; those without a place stand beside it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ...lens.visual_tokens import EDGES
from ..overlapping_tiles import views_of_tiles

Picture = tuple[int, int]
"""Sample and image."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of the viewer.

    Attributes:
        name: What it is called, such as ``Image 1, view 2``.
        picture: Sample and image whose pixels lie below; None for a blank grid.
        size: Width and height in the units of the boxes: pixels, or cells of a blank grid.
        tokens: Indices of the tokens that have a place, ``[token]``.
        boxes: Left, top, right and bottom of each, ``[token, 4]``.
        unplaced: Indices of the tokens without a place.
    """

    name: str
    picture: Picture | None
    size: tuple[float, float]
    tokens: Int[np.ndarray, " token"]
    boxes: Float[np.ndarray, "token 4"]
    unplaced: Int[np.ndarray, " _"]


def panels(table: pd.DataFrame, sizes: Mapping[Picture, tuple[int, int]]) -> list[Panel]:
    """The panels of all tokens, in the order of samples, images, frames and views.

    Args:
        table: One row per token, as ``VisualTokens.frame``.
        sizes: Width and height of the images at hand, by sample and image.
    """
    frames = table[["sample", "image", "frame"]].to_numpy(dtype=np.int64)
    several = {(int(s), int(i)) for s, i, f in frames.tolist() if f}
    found: list[Panel] = []
    for sample, image, frame in np.unique(frames, axis=0).tolist():
        name = f"Image {sample + 1}" + (f", picture {image + 1}" if image else "")
        name += f", frame {frame + 1}" if (sample, image) in several else ""
        tokens = np.flatnonzero((frames == (sample, image, frame)).all(1))
        found += _of_frame(name, (sample, image), tokens, table, sizes.get((sample, image)))
    return found


def _of_frame(
    name: str,
    picture: Picture,
    tokens: Int[np.ndarray, " token"],
    table: pd.DataFrame,
    size: tuple[int, int] | None,
) -> Iterator[Panel]:
    boxes = table[list(EDGES)].to_numpy(dtype=np.float64)[tokens]
    tiles = table["tile"].to_numpy(dtype=np.int64)[tokens]
    placed = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    row, col = (table[axis].to_numpy(dtype=np.int64)[tokens] for axis in ("row", "col"))
    if size is None or (not placed.any() and (row >= 0).any()):
        # Cells of a blank grid; those of different tiles would lie on one another.
        picture_below, extent = None, (1.0, 0.0)
        boxes, placed = np.stack([col, row, col + 1, row + 1], axis=1) + 0.0, row >= 0
        views = [[int(tile)] for tile in np.unique(tiles)]
    else:
        picture_below, extent = picture, (float(size[0]), float(size[1]))
        views = views_of_tiles({int(t): boxes[placed & (tiles == t)] for t in set(tiles[placed])})
    nowhere = ~np.isin(tiles, [tile for view in views for tile in view])
    for index, view in enumerate(views or [[]]):
        here = np.isin(tiles, view)
        mine = here & placed
        # What belongs to no view stands beside the first.
        beside = ~placed & (here | (nowhere & (index == 0)))
        if picture_below is None and mine.any():
            extent = float(boxes[mine, 2].max()), float(boxes[mine, 3].max())
        named = f"{name}, view {index + 1}" if len(views) > 1 else name
        yield Panel(named, picture_below, extent, tokens[mine], boxes[mine], tokens[beside])
