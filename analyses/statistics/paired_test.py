"""A paired test over images: could the two conditions have been swapped within images?

With one question per image that is answered right or wrong, it is McNemar's exact test. Questions
of one image are swapped together, since they are no independent observations.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from .estimate import ImageSums

_DRAWS = 20_000
_EXACT_SUMS = 100_000  # whole sums up to here are counted exactly
_BLOCK = 10_000_000  # numbers at once


def paired_test(
    difference: Float[np.ndarray, "question *rest"],
    groups: Int[np.ndarray, " question"] | None = None,
    *,
    seed: int = 0,
) -> Float[np.ndarray, "*rest"]:
    """Two-sided p of "no difference" by flipping the signs of whole images.

    Exact where the differences are whole numbers, such as of right answers; otherwise 20 000 drawn
    flips, counted so that p is never 0.

    Args:
        difference: Of a question under two conditions; NaN = not observed.
        groups: Which image each question belongs to; by default each has its own.
        seed: Of the drawn flips.
    """
    sums = ImageSums.of(difference, groups).sums
    found = np.array([_p(column, seed) for column in sums.T])
    nothing = np.isnan(difference.reshape(len(difference), -1)).all(0)
    return np.where(nothing, np.nan, found).reshape(difference.shape[1:])


def paired_test_of_many(
    difference: Float[np.ndarray, "question column"],
    groups: Int[np.ndarray, " question"] | None = None,
    *,
    seed: int = 0,
) -> Float[np.ndarray, " column"]:
    """As :func:`paired_test` of each column, corrected for all of them by the largest of each flip.

    All columns are flipped together, and each is compared with whichever is largest then, in units
    of its own size (Westfall and Young's single step): few images can say something of many
    columns, which a correction of one p after the other cannot.

    Args:
        difference: Of a question under two conditions, in every column.
        groups: Which image each question belongs to; by default each has its own.
        seed: Of the drawn flips; all flips are tried where there are no more than are drawn.
    """
    sums = ImageSums.of(difference, groups).sums
    size = np.sqrt((sums**2).sum(0))
    scaled = np.divide(sums, size, out=np.zeros_like(sums), where=size > 0)
    images = len(sums)
    if 2**images <= _DRAWS:
        flips = 1.0 - 2.0 * ((np.arange(2**images)[:, None] >> np.arange(images)) & 1)
    else:
        flips = np.random.default_rng(seed).choice((-1.0, 1.0), (_DRAWS, images))
        flips[0] = 1.0  # what was observed is one of them
    blocks = np.array_split(flips, max(1, len(flips) * scaled.shape[1] // _BLOCK))
    largest = np.concatenate([np.abs(block @ scaled).max(1, initial=0.0) for block in blocks])
    observed = np.abs(scaled.sum(0))
    p: NDArray[np.float64] = (largest[:, None] >= observed * (1 - 1e-9)).mean(0)
    return p


def _p(sums: Float[np.ndarray, " image"], seed: int) -> float:
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    observed = abs(sums.sum())
    whole = np.round(np.abs(sums)).astype(int)
    if np.array_equal(whole, np.abs(sums)) and whole.sum() <= _EXACT_SUMS:
        chance = np.ones(1)  # of every sum of the flipped numbers, from -total to total
        for size in whole:
            chance = (np.pad(chance, (0, 2 * size)) + np.pad(chance, (2 * size, 0))) / 2
        away = np.abs(np.arange(len(chance)) - whole.sum())
        return float(min(1.0, chance[away >= observed].sum()))
    as_far = np.abs(_flips(seed, len(sums)) @ sums) >= observed * (1 - 1e-9)
    return float((as_far.sum() + 1) / (_DRAWS + 1))


@lru_cache(maxsize=4)
def _flips(seed: int, images: int) -> Float[np.ndarray, "draw image"]:
    flips = np.random.default_rng(seed).choice((-1.0, 1.0), (_DRAWS, images))
    flips.setflags(write=False)
    return flips
