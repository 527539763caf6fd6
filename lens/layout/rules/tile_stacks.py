"""A pile of tiles, in order: which of them are one image?

Tilers put the tiles of all images on one pile and keep no count. Only three things can tell where
an image ends: what each tile was seen to show, one tile for every image, or marker tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..layout import Block, Layout
from ..layout_inputs import Evidence
from ..separators import images_of_runs


def layouts_of_tiles(
    evidence: Evidence, tiles: Sequence[Block], owners: NDArray[np.int32] | None
) -> list[Layout] | None:
    """Tiles joined to images, each with its index within its image.

    Args:
        evidence: For the numbers of images and the marker tokens.
        tiles: One block per tile of the batch.
        owners: The image of every tile, where that was measured.

    Returns:
        None when the tiles cannot be shared out to the token.
    """
    if owners is not None and len(owners) == len(tiles):
        numbers = [int((owners == image).sum()) for image in range(int(owners.max()) + 1)]
    elif evidence.counts is not None and sum(evidence.counts) == len(tiles):
        numbers = [1] * len(tiles)
    else:
        found = _numbers(evidence, tiles)
        if found is None:
            return None
        numbers = found
    left = iter(tiles)
    return [
        Layout(tuple(replace(next(left), tile=tile) for tile in range(number)))
        for number in numbers
    ]


def _numbers(evidence: Evidence, tiles: Sequence[Block]) -> list[int] | None:
    """Tiles per image from the stretches of visual tokens."""
    lengths = []
    for sample, positions in enumerate(evidence.positions):
        if evidence.counts is not None and evidence.counts[sample] == 1:
            lengths.append(len(positions))
        else:
            lengths += [sum(map(len, image)) for image in images_of_runs(evidence, sample)]
    left, numbers = list(map(len, tiles)), []
    for length in lengths:
        number, tokens = 0, 0
        while tokens < length and left:
            tokens += left.pop(0)
            number += 1
        if tokens != length:
            return None
        numbers.append(number)
    return None if left else numbers
