"""Intervals: against scipy, against naive loops, and honest where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embedlens.analyses.bootstrap import bootstrap_mean, bootstrap_pairs, resampling_weights


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=40)
    mine = bootstrap_mean(values, seed=1, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert mine.value == pytest.approx(values.mean())
    assert float(mine.low) == pytest.approx(theirs.low, abs=0.03 * width)
    assert float(mine.high) == pytest.approx(theirs.high, abs=0.03 * width)


def test_groups_are_resampled_as_wholes() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    values = rng.normal(size=12)[groups] + 0.01 * rng.normal(size=len(groups))
    mine = bootstrap_mean(values, groups, seed=0, resamples=4000)

    def of_groups(chosen: np.ndarray) -> float:
        return float(np.concatenate([values[groups == g] for g in chosen]).mean())

    drawn = [of_groups(rng.integers(0, 12, 12)) for _ in range(4000)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert float(mine.low) == pytest.approx(low, abs=0.06 * (high - low))
    assert float(mine.high) == pytest.approx(high, abs=0.06 * (high - low))
    ungrouped = bootstrap_mean(values, seed=0)
    assert mine.high - mine.low > 1.3 * (ungrouped.high - ungrouped.low)


def test_columns_are_estimated_as_if_alone() -> None:
    values = np.random.default_rng(0).normal(size=(15, 2, 3))
    values[4, 1, 2] = np.nan
    together = bootstrap_mean(values, seed=3)
    assert together.value.shape == (2, 3)
    for place in np.ndindex(2, 3):
        alone = bootstrap_mean(values[:, *place], seed=3)
        assert together.value[place] == pytest.approx(float(alone.value))
        assert together.low[place] == pytest.approx(float(alone.low))
    assert together.value[1, 2] == pytest.approx(np.nanmean(values[:, 1, 2]))


def test_one_unit_has_a_value_and_no_interval() -> None:
    one = bootstrap_mean(np.array([1.0, 3.0]), np.array([7, 7]))
    assert float(one.value) == 2.0
    assert np.isnan([one.low, one.high]).all()


def test_nothing_observed_is_nan_not_zero() -> None:
    none = bootstrap_mean(np.full((3, 2), np.nan))
    assert np.isnan(none.value).all()
    assert np.isnan(none.low).all()


def test_pairs_match_the_mean_over_pairs_of_different_units() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4))
    similarity = x @ x.T
    mine = bootstrap_pairs(similarity, seed=0)
    pairs = [similarity[a, b] for a in range(9) for b in range(9) if a != b]
    assert float(mine.value) == pytest.approx(np.mean(pairs))
    drawn = []
    for weights in resampling_weights(9, seed=0):
        units = np.repeat(np.arange(9), weights.astype(int))
        drawn.append(np.mean([similarity[a, b] for a in units for b in units if a != b]))
    assert float(mine.low) == pytest.approx(np.percentile(drawn, 2.5))
    assert float(mine.high) == pytest.approx(np.percentile(drawn, 97.5))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_mean(values, seed=5).low == bootstrap_mean(values, seed=5).low
    assert bootstrap_mean(values, seed=5).low != bootstrap_mean(values, seed=6).low
