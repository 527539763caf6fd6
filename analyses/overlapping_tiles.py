"""Tiles of one image that cover one another, told apart: a thumbnail lies over all other tiles.

Drawn on top of one another, the words of one view of an image would stand for those of another.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

Boxes = Float[np.ndarray, "cell 4"]


def views_of_tiles(tiles: Mapping[int, Boxes]) -> list[list[int]]:
    """The tiles in as few views as keep those that overlap apart, in the order of the tiles.

    Args:
        tiles: By its number the boxes of a tile's cells: left, top, right, bottom.
    """
    bounds = {tile: _bounds(boxes) for tile, boxes in sorted(tiles.items())}
    views: list[list[int]] = []
    for tile, bound in bounds.items():
        for view in views:
            if not any(_overlap(bound, bounds[other]) for other in view):
                view.append(tile)
                break
        else:
            views.append([tile])
    return views


def _bounds(boxes: Boxes) -> Float[np.ndarray, "4"]:
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def _overlap(one: Float[np.ndarray, "4"], other: Float[np.ndarray, "4"]) -> bool:
    """Whether two tiles share more than a seam."""
    shared = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    smaller = min(np.prod(one[2:] - one[:2]), np.prod(other[2:] - other[:2]))
    return bool((shared > 0).all() and np.prod(shared) > 0.1 * smaller)
