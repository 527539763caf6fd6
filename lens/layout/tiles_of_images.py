"""Tiles of a batch in order: which of them are one image?

Tilers put the tiles of all images one behind another and keep no count. Only three things can tell
where an image ends: what each tile was measured to show, one tile for every image, or the text
between stretches of visual tokens. Only a marker that says "the next tile" joins two stretches to
one image; any other text parts two images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .layout import Block, Layout
from .layout_inputs import LayoutInputs

_CELL = re.compile(r"row[_ ]?(\d+)[_ ]?col[_ ]?(\d+)|tile[_ ]?(\d+)", re.IGNORECASE)
_THUMBNAIL = re.compile(r"global|thumbnail", re.IGNORECASE)
_BETWEEN = re.compile(
    r"tile_[xy]_separator|img_(row|col|grid)\b|line_?break|newline|img_?break|slice", re.IGNORECASE
)


def layouts_of_tiles(
    inputs: LayoutInputs, tiles: Sequence[Block], owners: NDArray[np.int32] | None
) -> list[Layout] | None:
    """Tiles, one block each, joined to images, each with its index within its image.

    ``owners`` is the image of every tile, where that was measured. None when the tiles cannot be
    shared out to the token.
    """
    if owners is not None and len(owners) == len(tiles):
        numbers = [int((owners == image).sum()) for image in range(int(owners.max()) + 1)]
    elif inputs.counts is not None and sum(inputs.counts) == len(tiles):
        numbers = [1] * len(tiles)
    else:
        found = _tiles_per_image(inputs, tiles)
        if found is None:
            return None
        numbers = found
    remaining = iter(tiles)
    return [
        Layout(tuple(replace(next(remaining), tile=tile) for tile in range(number)))
        for number in numbers
    ]


def _tiles_per_image(inputs: LayoutInputs, tiles: Sequence[Block]) -> list[int] | None:
    """From the lengths of the stretches of visual tokens."""
    lengths = []
    for sample, positions in enumerate(inputs.positions):
        if inputs.counts is not None and inputs.counts[sample] == 1:
            lengths.append(len(positions))
        else:
            lengths += [sum(map(len, image)) for image in _images(inputs, sample)]
    remaining, numbers = list(map(len, tiles)), []
    for length in lengths:
        number, tokens = 0, 0
        while tokens < length and remaining:
            tokens += remaining.pop(0)
            number += 1
        if tokens != length:
            return None
        numbers.append(number)
    return None if remaining else numbers


def _images(inputs: LayoutInputs, sample: int) -> list[list[NDArray[np.int64]]]:
    """The stretches of visual tokens of one sample, those of one image together."""
    images: list[list[NDArray[np.int64]]] = []
    thumbnail_seen = False  # whether the image so far has had its thumbnail
    for stretch in inputs.stretches(sample):
        before = int(images[-1][-1][-1]) + 1 if images else 0
        text = _text(inputs, sample, before, int(stretch[0]))
        cell, is_thumbnail = _CELL.search(text), bool(_THUMBNAIL.search(text))
        first = cell is not None and all(number in (None, "1") for number in cell.groups())
        joined = bool(images) and bool(
            (cell and not first) or (is_thumbnail and not thumbnail_seen) or _BETWEEN.search(text)
        )
        if joined:
            images[-1].append(stretch)
        else:
            images.append([stretch])
            thumbnail_seen = False
        thumbnail_seen = thumbnail_seen or is_thumbnail
    return images


def _text(inputs: LayoutInputs, sample: int, start: int, end: int) -> str:
    if inputs.text_of is None:
        return ""
    return "".join(inputs.text_of(int(i)) for i in inputs.ids[sample, start:end])
