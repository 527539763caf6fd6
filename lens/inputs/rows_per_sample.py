"""Which rows of an image tensor belong to which sample of a batch.

``pixel_values`` has a row per image, per tile, per patch or per sample, depending on the model, and
nothing says which. A wrong reading hands one sample another's pixels and still runs. So a reading
counts only if it is the only one that fits; otherwise there is none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Counts = tuple[int, ...]

PICTURE_MASK = re.compile(r"(pixel|image|patch).*mask$")
_PICTURES = re.compile(r"pixel|image|patch")


@dataclass(frozen=True)
class SampleCounts:
    """What each sample of a batch has, ``[sample]`` each."""

    images: Counts  # number of images (or of videos, when the tensors are those of videos)
    tiles: Counts  # number of tiles or frames of them, as far as the layout is known, else empty
    tokens: Counts  # number of their visual tokens


def is_picture(name: str, tensor: Tensor) -> bool:
    """Whether a tensor holds the pixels or patches of images or videos."""
    pixels = tensor.is_floating_point() or tensor.dtype == torch.uint8
    return bool(pixels and _PICTURES.search(name) and not PICTURE_MASK.search(name))


def token_axis(name: str, tensor: Tensor, shape: tuple[int, int]) -> int | None:
    """The axis of samples of a tensor with an entry per sample and token; None for images' tensors.

    ``[sample, token, ...]``, or ``[3, sample, token]`` for positions in time, height and width.
    """
    if is_picture(name, tensor):
        return None
    found = (axis for axis in (0, 1) if tuple(tensor.shape[axis : axis + 2]) == shape)
    return next(found, None)


def rows_per_sample(name: str, inputs: Mapping[str, Tensor], counts: SampleCounts) -> Counts | None:
    """How many rows of ``inputs[name]`` belong to each sample; None where no one reading fits."""
    tensor = inputs[name]
    rows, samples = len(tensor), len(counts.images)
    found: set[Counts] = set()
    if rows == sum(counts.images):
        # Every image has at least one row: with as many rows as images, each has exactly one.
        found.add(counts.images)
    if rows == samples and _may_be_per_sample(tensor, counts):
        found.add((1,) * samples)
    if found:
        return found.pop() if len(found) == 1 else None
    for weights in _rows_per_image(name, inputs, sum(counts.images)):
        if weights.sum() == rows:
            starts = np.concatenate([[0], np.cumsum(counts.images)]).astype(int)
            found.add(tuple(int(weights[a:b].sum()) for a, b in pairwise(starts)))
    if found:
        return found.pop() if len(found) == 1 else None
    if sum(counts.tiles) == rows:
        found.add(counts.tiles)
    if (proportional := _proportional(name, inputs, counts)) is not None:
        found.add(proportional)
    return found.pop() if len(found) == 1 else None


def pointed_rows(
    tensor: Tensor, rows: Counts, target: Tensor, target_rows: Counts
) -> NDArray[np.int64] | None:
    """Where each sample's entries begin, ``[sample]``, if ``tensor`` points into ``target``.

    Some models pool patches by index: entries count through the patches ``[row, patch]`` of all
    images of the batch, and would point at other images once samples are taken out. Negative ones
    point nowhere. None where the entries are no such pointers.
    """
    if tensor.is_floating_point() or target.ndim < 2 or len(rows) < 2:
        return None
    starts = np.concatenate([[0], np.cumsum(target_rows)]) * target.shape[1]
    for part, (low, high) in zip(torch.split(tensor, list(rows)), pairwise(starts), strict=True):
        real = part[part >= 0]
        if len(real) and not (low <= int(real.min()) and int(real.max()) < high):
            return None
    return starts[:-1].astype(np.int64)


def _may_be_per_sample(tensor: Tensor, counts: SampleCounts) -> bool:
    """A row per sample holds as many images as the fullest sample, or belongs to its text."""
    if all(n == 1 for n in counts.images):
        return True
    # A list of sizes or grids has no room for several images in one row.
    return tensor.ndim != 2 or not 2 <= tensor.shape[1] <= 4


def _rows_per_image(
    name: str, inputs: Mapping[str, Tensor], n_images: int
) -> list[NDArray[np.int64]]:
    """Row counts that grids and counts of crops state for every image."""
    stated = []
    for other, tensor in inputs.items():
        if other == name or ("video" in other) != ("video" in name) or len(tensor) != n_images:
            continue
        if tensor.is_floating_point():
            continue
        values = tensor.cpu().numpy().astype(np.int64)
        if "grid" in other and values.ndim == 2 and values.shape[1] == 3:
            stated.append(values.prod(1))
        if values.ndim == 1 and ("num" in other or "count" in other):
            stated.append(values)
    return stated


def _proportional(name: str, inputs: Mapping[str, Tensor], counts: SampleCounts) -> Counts | None:
    """Shares of the rows as the visual tokens are shared, where that comes out whole."""
    rows, tokens = len(inputs[name]), sum(counts.tokens)
    weights = np.ones(rows)
    for other, tensor in inputs.items():
        if "shape" in other and tuple(tensor.shape) == (rows, 2):
            weights = tensor.cpu().numpy().astype(np.float64).prod(1)
    if not tokens:
        return None
    ends = np.cumsum(weights) / weights.sum() * tokens
    shares, start = [], 0
    for end in np.cumsum(counts.tokens):
        at = np.flatnonzero(np.isclose(ends, end, atol=1e-6))
        stop = start if end == 0 else int(at[0]) + 1 if len(at) else -1
        if stop < start:
            return None
        shares.append(stop - start)
        start = stop
    return tuple(shares) if start == rows else None
