"""Intervals: against scipy, naive loops and closed forms; none where nothing can be said."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from embedlens.analyses.statistics import (
    MIN_IMAGES,
    Estimate,
    bootstrap_mean,
    bootstrap_pairs,
    paired_difference,
    proportion,
    resampling_weights,
)


def width(estimate: Estimate) -> float:
    return float(estimate.high - estimate.low)


def test_many_normal_numbers_have_the_interval_of_students_t() -> None:
    values = np.random.default_rng(0).normal(size=400)
    mine = bootstrap_mean(values, seed=1, resamples=4000)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert float(mine.value) == pytest.approx(values.mean())
    assert float(mine.low) == pytest.approx(theirs.low, abs=0.05 * (theirs.high - theirs.low))
    assert float(mine.high) == pytest.approx(theirs.high, abs=0.05 * (theirs.high - theirs.low))
    assert mine.low <= theirs.low
    assert mine.high >= theirs.high


def studentised_by_hand(values: np.ndarray, groups: np.ndarray, level: float) -> tuple[float, ...]:
    """The bootstrap-t of a mean over groups of unequal size, one resample after the other."""
    names = np.unique(groups)
    k = len(names)
    sums = np.array([values[groups == name].sum() for name in names])
    sizes = np.array([float((groups == name).sum()) for name in names])

    def mean_and_error(chosen: np.ndarray) -> tuple[float, float]:
        m = sums[chosen].sum() / sizes[chosen].sum()
        squares = ((sums[chosen] - m * sizes[chosen]) ** 2).sum()
        return m, float(np.sqrt(k / (k - 1) * squares) / sizes[chosen].sum())

    mean, error = mean_and_error(np.arange(k))
    scores = []
    for weights in resampling_weights(k):
        m, e = mean_and_error(np.repeat(np.arange(k), weights.astype(int)))
        scores.append((m - mean) / e)
    tail = 100 * (1 - level) / 2 * (1 - 6 / k)
    low, high = np.percentile(scores, (tail, 100 - tail))
    reach = stats.t.isf((1 - level) / 2, k - 1)
    return mean, mean - max(high, reach) * error, mean + max(-low, reach) * error


def test_images_are_resampled_as_wholes() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    values = rng.lognormal(size=12)[groups] + 0.1 * rng.normal(size=len(groups))
    mine = bootstrap_mean(values, groups)
    by_hand = studentised_by_hand(values, groups, 0.95)
    found = (float(mine.value), float(mine.low), float(mine.high))
    assert found == pytest.approx(by_hand, rel=0.05)
    assert width(mine) > 1.3 * width(bootstrap_mean(values))


def test_skewed_numbers_reach_further_to_the_side_of_what_was_not_seen() -> None:
    estimate = bootstrap_mean(-np.log((np.arange(12) + 0.5) / 12))
    assert estimate.high - estimate.value > 1.5 * (estimate.value - estimate.low)


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


def test_nothing_observed_is_nan_not_zero() -> None:
    for none in (bootstrap_mean(np.full((9, 2), np.nan)), proportion(np.full((9, 2), np.nan))):
        assert np.isnan(none.value).all()
        assert np.isnan(none.low).all()


@pytest.mark.parametrize("images", [1, 2, MIN_IMAGES - 1])
def test_too_few_images_have_a_value_and_no_interval(images: int) -> None:
    """However many questions there are about them."""
    groups = np.repeat(np.arange(images), 50)
    values = np.random.default_rng(0).random(len(groups))
    right = (values > 0.3).astype(float)
    before = (values > 0.2).astype(float)
    similarity = np.corrcoef(np.random.default_rng(0).random((images + 1, 9)))[:images, :images]
    for estimate in (
        bootstrap_mean(values, groups, bounds=(0.0, 1.0)),
        proportion(right, groups),
        paired_difference(right, before, groups),
        bootstrap_pairs(similarity),
    ):
        assert images == 1 or np.isfinite(estimate.value)
        assert np.isnan([estimate.low, estimate.high]).all()


@pytest.mark.parametrize("n", [8, 20, 60])
@pytest.mark.parametrize("right", [0, 1, 5, 8])
def test_one_question_per_image_has_the_exact_interval(n: int, right: int) -> None:
    mine = proportion(np.array([1.0] * right + [0.0] * (n - right)))
    theirs = stats.binomtest(right, n).proportion_ci(0.95, method="exact")
    assert (float(mine.low), float(mine.high)) == pytest.approx((theirs.low, theirs.high))


def test_no_interval_has_no_width() -> None:
    """Not where all answers are right, nothing changed, or all shares are equal."""
    same, groups = np.ones(40), np.repeat(np.arange(8), 5)
    for estimate in (
        proportion(same, groups),
        proportion(same - 1, groups),
        paired_difference(same, same, groups),
        bootstrap_mean(same, groups, bounds=(0.0, 1.0)),
        bootstrap_mean(0.3 * same, groups, bounds=(0.0, 1.0)),
        bootstrap_pairs(np.ones((8, 8))),
    ):
        assert width(estimate) > 0.2
        assert estimate.low <= estimate.value <= estimate.high
    unbounded = bootstrap_mean(7.0 * same, groups)
    assert np.isnan([unbounded.low, unbounded.high]).all()
    assert float(unbounded.value) == 7.0


def test_questions_about_one_image_count_as_much_as_they_differ() -> None:
    """Alike answers about an image are worth one; independent ones nearly their number."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 6)
    alike = (rng.random(30) < 0.6).astype(float)[groups]
    unlike = np.resize([0.0, 1.0, 1.0], 180)
    one_each = proportion(alike[::6])
    assert width(proportion(alike, groups)) == pytest.approx(width(one_each), rel=0.1)
    assert width(proportion(unlike, groups)) == pytest.approx(width(proportion(unlike)), rel=0.05)


def test_a_difference_is_of_what_was_won_and_lost() -> None:
    """Questions that stay as they are say only how rare changes are."""
    before = np.array([1.0] * 30 + [0.0] * 10)
    after = before.copy()
    after[:8] = 0.0
    after[38:] = 1.0
    mine = paired_difference(after, before)
    assert float(mine.value) == pytest.approx(-6 / 40)
    unpaired = 2 * 1.96 * np.sqrt(24 / 40 * 16 / 40 / 40 + 30 / 40 * 10 / 40 / 40)
    assert width(mine) < 1.05 * unpaired
    assert mine.low < -6 / 40 < mine.high
    swapped = paired_difference(before, after)
    assert float(swapped.low) == pytest.approx(-float(mine.high))


def test_pairs_match_the_mean_over_pairs_of_different_images() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4)) + 2
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    mine = bootstrap_pairs(similarity)

    def over_pairs(images: list[int]) -> float:
        return float(np.mean([similarity[a, b] for a in images for b in images if a != b]))

    every = list(range(12))
    assert float(mine.value) == pytest.approx(over_pairs(every))
    left_out = [over_pairs([i for i in every if i != out]) for out in every]
    error = np.sqrt(11 / 12 * ((np.array(left_out) - np.mean(left_out)) ** 2).sum())
    jackknife = 2 * stats.t.isf(0.025, 11) * error
    assert jackknife <= width(mine) < 2.5 * jackknife
    similarity[3] = similarity[:, 3] = np.nan
    assert float(bootstrap_pairs(similarity).value) == pytest.approx(
        over_pairs([i for i in every if i != 3])
    )


@pytest.mark.parametrize("images", [8, 20])
@pytest.mark.parametrize("p", [0.9, 0.98])
def test_the_truth_is_covered_as_often_as_it_says(images: int, p: float) -> None:
    """Counted over every possible outcome with its probability, not simulated."""
    right = np.arange(images + 1)
    table = (np.arange(images)[:, None] < right).astype(float)
    estimate = proportion(table)
    covers = (estimate.low <= p) & (p <= estimate.high)
    assert stats.binom.pmf(right, images, p)[covers].sum() >= 0.95


@pytest.mark.parametrize(("lost", "won"), [(0.06, 0.01), (0.05, 0.0), (0.3, 0.25)])
def test_a_difference_is_covered_as_often_as_it_says(lost: float, won: float) -> None:
    images, outcomes, chances = 8, [], []
    for a in range(images + 1):
        for b in range(images + 1 - a):
            outcomes.append([-1.0] * a + [1.0] * b + [0.0] * (images - a - b))
            chance = stats.multinomial.pmf(
                [a, b, images - a - b], images, [lost, won, 1 - lost - won]
            )
            chances.append(float(chance))
    change = np.array(outcomes).T
    before = (change < 0).astype(float)
    estimate = paired_difference(before + change, before)
    truth = won - lost
    covers = (estimate.low <= truth) & (truth <= estimate.high)
    assert np.array(chances)[covers].sum() >= 0.95


def test_a_higher_level_is_wider_everywhere() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 4)
    numbers = rng.lognormal(size=40)
    right, before = (rng.random((2, 40)) < 0.8).astype(float)
    for interval in (
        lambda level: bootstrap_mean(numbers, groups, level=level),
        lambda level: proportion(right, groups, level=level),
        lambda level: paired_difference(right, before, groups, level=level),
    ):
        widths = [width(interval(1 - alpha)) for alpha in (0.5, 0.2, 0.05, 0.01, 1e-3, 2e-4)]
        assert widths == sorted(widths)
        assert len(set(widths)) == len(widths)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).lognormal(size=20)
    assert bootstrap_mean(values, seed=5).low == bootstrap_mean(values, seed=5).low
    assert bootstrap_mean(values, seed=5).high != bootstrap_mean(values, seed=6).high
