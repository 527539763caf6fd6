"""Estimates with intervals, and the sums over whole images that every interval starts from.

Tokens and questions of one image are no independent observations: intervals over them are far too
narrow. Every interval here is over images, and there is none for fewer than `MIN_IMAGES`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

LEVEL = 0.95
MIN_IMAGES = 8
"""The fewest images for which the simulation in docs/statistics.md shows intervals to hold."""

Levels = float | Float[np.ndarray, " column"]


@dataclass(frozen=True)
class Estimate:
    """Estimates and their intervals, arrays of one shape.

    The bounds are NaN where there are fewer than `MIN_IMAGES` images, and where nothing bounds
    them: equal values of a quantity that has no limits.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def row(self, *index: int, name: str | None = None) -> dict[str, float]:
        """One of the estimates as columns of a table.

        Args:
            index: Which one.
            name: What is estimated: columns name, name_low, name_high; without it value, low, high.
        """
        columns = (
            ("value", "low", "high") if name is None else (name, f"{name}_low", f"{name}_high")
        )
        arrays = (self.value, self.low, self.high)
        return {key: float(array[index]) for key, array in zip(columns, arrays, strict=True)}


@dataclass(frozen=True)
class ImageSums:
    """What every image adds to a mean: its sum and its number of observations, by column.

    The deviations of the sums from what the mean predicts are the residuals of the linearised
    ratio Σ sums / Σ counts, which is what all intervals are made of.
    """

    sums: Float[np.ndarray, "image column"]
    counts: Float[np.ndarray, "image column"]

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "observation *rest"],
        groups: Int[np.ndarray, " observation"] | None = None,
        *,
        times: int = 1,
    ) -> "ImageSums":
        """Sums over the observations of every image.

        Args:
            values: One row per observation; NaN = not observed.
            groups: Which image each observation belongs to; by default each is its own.
            times: Count every image this often, to see what more of the same would show.
        """
        groups = np.arange(len(values)) if groups is None else groups
        _, image = np.unique(groups, return_inverse=True)
        flat = values.reshape(len(values), -1).astype(np.float64)
        seen = ~np.isnan(flat)
        n_images = int(image.max()) + 1 if len(image) else 0
        sums, counts = (np.zeros((n_images, flat.shape[1])) for _ in range(2))
        np.add.at(sums, image, np.where(seen, flat, 0.0))
        np.add.at(counts, image, seen)
        return cls(np.tile(sums, (times, 1)), np.tile(counts, (times, 1)))

    @property
    def images(self) -> Float[np.ndarray, " column"]:
        """Images with at least one observation."""
        images: NDArray[np.float64] = (self.counts > 0).sum(0).astype(np.float64)
        return images

    @property
    def n(self) -> Float[np.ndarray, " column"]:
        """Observations."""
        n: NDArray[np.float64] = self.counts.sum(0)
        return n

    @property
    def mean(self) -> Float[np.ndarray, " column"]:
        """Over all observations; NaN where there is none."""
        return ratio(self.sums.sum(0), self.n)

    @property
    def residuals(self) -> Float[np.ndarray, "image column"]:
        """Each image's sum less what the mean predicts for it."""
        expected: NDArray[np.float64] = np.nan_to_num(self.mean) * self.counts
        return self.sums - expected

    @property
    def variance(self) -> Float[np.ndarray, " column"]:
        """Of the mean, linearised; NaN for a single image."""
        k = self.images
        return ratio(ratio(k, k - 1) * (self.residuals**2).sum(0), self.n**2)


def ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quotient; NaN where there is nothing to divide by."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    nothing = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=nothing, where=denominator > 0)
    return nothing


def exact_bounds(
    share: Float[np.ndarray, " column"],
    n: Float[np.ndarray, " column"],
    level: Levels,
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """Clopper and Pearson's bounds of a share of n observations; n may be a fraction."""
    tail = (1 - np.asarray(level)) / 2
    right = share * n
    wrong = n - right
    low = np.where(right > 0, betaincinv(np.fmax(right, 1e-12), wrong + 1, tail), 0.0)
    high = np.where(wrong > 0, betaincinv(right + 1, np.fmax(wrong, 1e-12), 1 - tail), 1.0)
    return np.where(np.isnan(share), np.nan, low), np.where(np.isnan(share), np.nan, high)


def reach(tail: NDArray[np.float64], df: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many standard errors Student's interval reaches that leaves this tail on each side."""
    errors: NDArray[np.float64] = -stdtrit(df, tail)
    return errors
