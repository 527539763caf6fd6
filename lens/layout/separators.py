"""Tokens between stretches of visual tokens: do they join two tiles or part two images?

Tilers write the place of a tile into the text, and the number of images is nowhere else. Only
markers that say "the next tile" join; anything else parts.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from .layout_inputs import Evidence

_CELL = re.compile(r"row[_ ]?(\d+)[_ ]?col[_ ]?(\d+)|tile[_ ]?(\d+)", re.IGNORECASE)
_WHOLE = re.compile(r"global|thumbnail", re.IGNORECASE)
_BETWEEN = re.compile(
    r"tile_[xy]_separator|img_(row|col|grid)\b|line_?break|newline|img_?break|slice", re.IGNORECASE
)


def images_of_runs(evidence: Evidence, sample: int) -> list[list[NDArray[np.int64]]]:
    """The stretches of visual tokens of one sample, those of one image together."""
    images: list[list[NDArray[np.int64]]] = []
    whole = False  # whether the image so far has had its view of the whole
    for run in evidence.runs(sample):
        before = int(images[-1][-1][-1]) + 1 if images else 0
        text = _text(evidence, sample, before, int(run[0]))
        cell, is_whole = _CELL.search(text), bool(_WHOLE.search(text))
        first = cell is not None and all(number in (None, "1") for number in cell.groups())
        joined = bool(images) and bool(
            (cell and not first) or (is_whole and not whole) or _BETWEEN.search(text)
        )
        if joined:
            images[-1].append(run)
        else:
            images.append([run])
            whole = False
        whole = whole or is_whole
    return images


def _text(evidence: Evidence, sample: int, start: int, end: int) -> str:
    if evidence.text_of is None:
        return ""
    return "".join(evidence.text_of(int(i)) for i in evidence.ids[sample, start:end])
