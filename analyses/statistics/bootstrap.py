"""Uncertainty: percentile bootstrap over independent units (images, not tokens).

Tokens of one image are no independent observations, so resampling tokens would give intervals
that are far too narrow. Every function here resamples whole units.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """Estimates and their percentile intervals, arrays of one shape.

    The bounds are NaN where there are fewer than two units: one image tells nothing about others.
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


def bootstrap_mean(
    values: Float[np.ndarray, "observation *rest"],
    groups: Int[np.ndarray, " observation"] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean over observations with an interval from resampling groups of them.

    Args:
        values: One row per observation; NaN = not observed.
        groups: Which unit each observation belongs to; by default each is its own.
        seed: Of the resampling.
        resamples: How many.
    """
    groups = np.arange(len(values)) if groups is None else groups
    _, unit = np.unique(groups, return_inverse=True)
    flat = rearrange(values, "observation ... -> observation (...)").astype(np.float64)
    seen = ~np.isnan(flat)
    n_units = int(unit.max()) + 1 if len(unit) else 0
    sums, counts = np.zeros((n_units, flat.shape[1])), np.zeros((n_units, flat.shape[1]))
    np.add.at(sums, unit, np.where(seen, flat, 0.0))
    np.add.at(counts, unit, seen)
    weights = resampling_weights(n_units, seed=seed, resamples=resamples)
    value = _ratio(sums.sum(0), counts.sum(0))
    drawn = _ratio(weights @ sums, weights @ counts)
    enough = (counts > 0).sum(0) > 1
    return _estimate(value, drawn, enough, values.shape[1:])


def bootstrap_pairs(
    similarity: Float[np.ndarray, "unit unit"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Mean over pairs of different units with an interval from resampling the units.

    A unit drawn twice makes no pair with itself: its similarity to itself is no finding.

    Args:
        similarity: Symmetric; NaN = not observed; the diagonal is ignored.
        seed: Of the resampling.
        resamples: How many.
    """
    n = len(similarity)
    seen = ~np.isnan(similarity) & ~np.eye(n, dtype=bool)
    filled = np.where(seen, similarity, 0.0)
    weights = resampling_weights(n, seed=seed, resamples=resamples)
    value = _ratio(filled.sum(keepdims=True), seen.sum(keepdims=True, dtype=np.float64))
    drawn = _ratio(((weights @ filled) * weights).sum(1), ((weights @ seen) * weights).sum(1))
    return _estimate(value[0], drawn[:, None], np.array([seen.any(1).sum() > 2]), ())


def resampling_weights(
    n_units: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> Float[np.ndarray, "resample unit"]:
    """How often each unit is drawn in each resample of `n_units` units with replacement."""
    if not n_units:
        return np.zeros((resamples, 0))
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_units, np.full(n_units, 1 / n_units), resamples).astype(np.float64)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    nothing = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=nothing, where=denominator > 0)
    return nothing


def _estimate(
    value: NDArray[np.float64],
    drawn: NDArray[np.float64],
    enough: NDArray[np.bool_],
    shape: tuple[int, ...],
) -> Estimate:
    bounds = np.full((2, len(value)), np.nan)
    if enough.any():
        tail = 100 * (1 - LEVEL) / 2
        bounds[:, enough] = np.nanpercentile(drawn[:, enough], (tail, 100 - tail), axis=0)
    return Estimate(value.reshape(shape), bounds[0].reshape(shape), bounds[1].reshape(shape))
