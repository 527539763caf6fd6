"""Intervals for shares of right answers, and for differences of two shares of the same questions.

Resampling says nothing about what was never seen: with 20 images and a true share of 98 %, two
thirds of all samples are without a single wrong answer, and a bootstrap of those has no width.
Here bounds are exact (Clopper and Pearson) for as many independent questions as the questions are
worth (Korn and Graubard 1998): all of them where each has an image of its own, and the fewer the
more alike the answers about one image are.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from .estimate import LEVEL, MIN_IMAGES, Estimate, ImageSums, Levels, exact_bounds, ratio, reach

_KNOWN = 2  # degrees of freedom beside one per image with the rarer answer: docs/statistics.md


def proportion(
    right: Float[np.ndarray, "question *rest"],
    groups: Int[np.ndarray, " question"] | None = None,
    *,
    level: Levels = LEVEL,
    times: int = 1,
) -> Estimate:
    """Share of ones among zeros and ones, with an interval over images.

    Args:
        right: 0 or 1 per question; NaN = not asked.
        groups: Which image each question belongs to; by default each has its own.
        level: Of the interval; one for all columns or one per column.
        times: Count every image this often, to see what more of the same would show.
    """
    parts = ImageSums.of(right, groups, times=times)
    low, high = _bounds(parts, level)
    return _estimate(parts, parts.mean, low, high, right.shape[1:])


def paired_difference(
    right: Float[np.ndarray, "question *rest"],
    before: Float[np.ndarray, "question *rest"],
    groups: Int[np.ndarray, " question"] | None = None,
    *,
    level: Levels = LEVEL,
    times: int = 1,
) -> Estimate:
    """Change of a share, from the same questions asked twice, with an interval over images.

    The difference is the share of questions won less the share lost; their exact intervals are
    joined by the method of variance estimates recovery (Newcombe 1998), correlation included.

    Args:
        right: 0 or 1 per question; NaN = not asked.
        before: The same for what is compared with.
        groups: Which image each question belongs to; by default each has its own.
        level: Of the interval; one for all columns or one per column.
        times: Count every image this often, to see what more of the same would show.
    """
    change = right - before
    won, lost = (
        ImageSums.of(np.where(np.isnan(change), np.nan, change == sign), groups, times=times)
        for sign in (1, -1)
    )
    (won_low, won_high), (lost_low, lost_high) = _bounds(won, level), _bounds(lost, level)
    opposed = _opposed(won, lost)
    value = won.mean - lost.mean
    low = value - _joined(won.mean - won_low, lost_high - lost.mean, opposed)
    high = value + _joined(won_high - won.mean, lost.mean - lost_low, opposed)
    return _estimate(won, value, np.fmax(low, -1.0), np.fmin(high, 1.0), change.shape[1:])


def _bounds(
    parts: ImageSums, level: Levels
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    return exact_bounds(parts.mean, _worth(parts, level), level)


def _worth(parts: ImageSums, level: Levels) -> Float[np.ndarray, " column"]:
    """How many independent questions the questions are worth.

    Never more than there are, nor fewer than when all answers about an image are one answer,
    which is also what is taken where all answers are the same. How alike answers about one image
    are is known only as well as there are images with answers of the rarer kind: hence the degrees
    of freedom.
    """
    share, n, k = parts.mean, parts.n, parts.images
    fewest = ratio(n**2, (parts.counts**2).sum(0))
    both = np.minimum((parts.sums > 0).sum(0), (parts.sums < parts.counts).sum(0))
    df = np.clip(both + _KNOWN, 1, np.fmax(k - 1, 1))
    tail = np.asarray((1 - np.asarray(level)) / 2)
    shrunk = (reach(tail, np.fmax(n - 1, 1)) / reach(tail, df)) ** 2
    spread, variance = share * (1 - share), np.nan_to_num(parts.variance)
    worth = np.where(variance > 0, ratio(spread, variance) * shrunk, n)
    worth = np.where(spread > 0, np.clip(worth, fewest, np.fmax(n, fewest)), fewest)
    found: NDArray[np.float64] = np.where((parts.counts <= 1).all(0), n, worth)
    return found


def _opposed(won: ImageSums, lost: ImageSums) -> Float[np.ndarray, " column"]:
    """How much winning and losing exclude each other: minus their correlation, at least 0."""
    odds = won.mean * lost.mean
    alone = np.sqrt(ratio(odds, (1 - won.mean) * (1 - lost.mean)))
    product = (won.residuals**2).sum(0) * (lost.residuals**2).sum(0)
    jointly = -ratio((won.residuals * lost.residuals).sum(0), np.sqrt(product))
    known: NDArray[np.float64] = np.fmax(np.nan_to_num(alone), np.nan_to_num(jointly))
    return np.clip(known, 0.0, 1.0)


def _joined(
    one: NDArray[np.float64], other: NDArray[np.float64], opposed: NDArray[np.float64]
) -> NDArray[np.float64]:
    length: NDArray[np.float64] = np.sqrt(one**2 + other**2 + 2 * opposed * one * other)
    return length


def _estimate(
    parts: ImageSums,
    value: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    shape: tuple[int, ...],
) -> Estimate:
    enough = parts.images >= MIN_IMAGES
    low, high = np.where(enough, low, np.nan), np.where(enough, high, np.nan)
    return Estimate(value.reshape(shape), low.reshape(shape), high.reshape(shape))
