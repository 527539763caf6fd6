"""Do readings belong to their own images? Against the same readings with the images exchanged.

A reader that always says "red" is right as often as things are red, and one that says what most
people say more often still. So what is counted is compared with what it would be if the truth of
the images were dealt out anew: a permutation test, exact whatever the reader's habits are.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from ..statistics import LEVEL, Estimate, bootstrap_mean
from ..statistics.estimate import Levels

_DRAWS = 5000
_BLOCK = 500


@dataclass(frozen=True, eq=False)
class BesideOthers:
    """Readings beside the truth of their own image, and beside that of the others.

    Attributes:
        own: Whether a reading fits its image.
        expected: How many of the other images' truths it would fit, as a share.
        p: Two-sided, of "which image it was does not matter".
        images: Which images these are, of those that were given.
    """

    own: Float[np.ndarray, " image"]
    expected: Float[np.ndarray, " image"]
    p: float
    images: Int[np.ndarray, " image"]

    @property
    def difference(self) -> Float[np.ndarray, " image"]:
        """Own less expected."""
        found: NDArray[np.float64] = self.own - self.expected
        return found

    def kept(self, given: Bool[np.ndarray, " given"]) -> Bool[np.ndarray, " image"]:
        """What is so of the given images, for those that are here."""
        found: NDArray[np.bool_] = given[self.images]
        return found

    def estimate(self, level: Levels = LEVEL, times: int = 1) -> Estimate:
        """The mean difference, with an interval over images."""
        return bootstrap_mean(self.difference, bounds=(-1.0, 1.0), level=level, times=times)


def beside_others(
    fits: Bool[np.ndarray, "image truth"],
    strata: Int[np.ndarray, " image"] | None = None,
    *,
    seed: int = 0,
) -> BesideOthers:
    """Readings beside permuted truths.

    Args:
        fits: Whether the reading of an image fits the truth of every image; its own is on the
            diagonal.
        strata: Truths are exchanged within these only, where some other property of the images
            goes with them. Images that are alone in theirs say nothing, and are left out.
        seed: Of the permutations.
    """
    strata = np.zeros(len(fits), int) if strata is None else strata
    same = strata[:, None] == strata[None, :]
    kept = np.flatnonzero(same.sum(1) > 1)
    fits, same, strata = fits[np.ix_(kept, kept)], same[np.ix_(kept, kept)], strata[kept]
    n = len(fits)
    own = fits.diagonal().astype(float)
    if not n:
        return BesideOthers(own, own, np.nan, kept)
    expected = ((fits & same).sum(1) - own) / (same.sum(1) - 1)
    rng, order = np.random.default_rng(seed), np.argsort(strata, kind="stable")
    above = below = 1
    for _ in range(_DRAWS // _BLOCK):
        # Drawn numbers sorted within every stratum deal its truths out anew.
        dealt = np.lexsort((rng.random((_BLOCK, n)), np.broadcast_to(strata, (_BLOCK, n))))
        truth = np.empty((_BLOCK, n), int)
        truth[:, order] = dealt
        drawn = fits[np.arange(n), truth].sum(1)
        above += int((drawn >= own.sum()).sum())
        below += int((drawn <= own.sum()).sum())
    p = min(1.0, 2 * min(above, below) / (_DRAWS + 1))
    return BesideOthers(own, expected, p, kept)


def exchanged_places(
    own: Bool[np.ndarray, " image"], others: Float[np.ndarray, " image"], n_others: int
) -> float:
    """Two-sided p of "it could have been any token": which token of an image is the drawn one's.

    Exact: with the cell drawn at random, each image's token hits with the share of all its tokens
    that do, and hits of images are independent.

    Args:
        own: Whether the token in the cell hits.
        others: The share of hits among as many tokens drawn from the rest of the image.
        n_others: How many.
    """
    shares = (own + others * n_others) / (1 + n_others)
    chances = np.ones(1)
    for share in shares:
        chances = np.append(chances * (1 - share), 0) + np.append(0, chances * share)
    hits = int(own.sum())
    return float(min(1.0, 2 * min(chances[hits:].sum(), chances[: hits + 1].sum())))
