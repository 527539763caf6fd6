"""Verdicts: by whole intervals, never surer with less data, and corrected for their number."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from embedlens.analyses.statistics import (
    Estimate,
    Evidence,
    Region,
    bootstrap_mean,
    evidence,
    evidence_of_many,
    holm,
    paired_difference,
    paired_test,
    proportion,
)

ABOUT_60 = Region(0.55, 0.65)
NO_LOSS = Region(low=-0.05)


SKEWED = np.random.default_rng(0).lognormal(size=400)


def share(values: np.ndarray, groups: np.ndarray | None = None) -> Evidence:
    images = len(values if groups is None else set(groups.tolist()))
    return evidence(
        lambda level, times: proportion(values, groups, level=level, times=times), ABOUT_60, images
    )


def answers(n: int, right: float) -> np.ndarray:
    return (np.arange(n) < round(right * n)).astype(float)


def test_only_a_whole_interval_inside_agrees_and_only_one_outside_differs() -> None:
    assert share(answers(1000, 0.6)).verdict() == "agrees"
    assert share(answers(1000, 0.3)).verdict() == "differs"
    assert share(answers(1000, 0.64)).verdict() == "undecided"
    assert share(answers(40, 0.6)).verdict() == "undecided"
    assert share(answers(7, 0.0)).verdict() == "undecided"


@pytest.mark.parametrize("right", [0.3, 0.5, 0.6, 0.62])
@pytest.mark.parametrize("n", [60, 400, 2000])
def test_p_is_one_less_the_highest_level_that_decides(n: int, right: float) -> None:
    values = answers(n, right)
    found = share(values)

    def decided(alpha: float) -> tuple[bool, bool]:
        e = proportion(values, level=1 - alpha)
        return bool(e.low >= 0.55 and e.high <= 0.65), bool(e.high < 0.55 or e.low > 0.65)

    for side, p in enumerate((found.agrees, found.differs)):
        if p > 2e-5:
            assert not decided(p * 0.99)[side]
        if p < 1:
            assert decided(min(p * 1.01, 0.999))[side]


def test_what_n_would_decide_is_said_and_does_decide() -> None:
    found = share(answers(40, 0.6))
    assert found.verdict() == "undecided"
    n = int(found.decided_at)
    assert n > 100
    assert n % 40 == 0
    assert share(answers(n, 0.6)).verdict() == "agrees"
    assert share(answers(n // 2, 0.6)).verdict() == "undecided"
    assert np.isnan(share(answers(1000, 0.65)).decided_at)


def verdicts_of_parts(values: np.ndarray, interval: Any, region: Region, size: int) -> list[str]:
    """The verdicts of a fifty random parts."""
    rng = np.random.default_rng(size)
    parts = np.stack([rng.permutation(values)[:size] for _ in range(50)], axis=1)
    found = evidence_of_many(
        lambda level, times: interval(parts, level=level), region, np.full(50, np.nan)
    )
    return [each.verdict() for each in found]


@pytest.mark.parametrize(
    ("values", "interval", "region", "whole"),
    [
        (answers(1200, 0.6), proportion, ABOUT_60, "agrees"),
        (answers(1200, 0.3), proportion, ABOUT_60, "differs"),
        (SKEWED, bootstrap_mean, Region(1.0), "agrees"),
        (SKEWED, bootstrap_mean, Region(high=1.0), "differs"),
    ],
)
def test_less_data_turns_verdicts_undecided_only(
    values: np.ndarray, interval: Any, region: Region, whole: str
) -> None:
    """No part of data that agree differs, and the other way round; fewer decide, never more."""
    rates = []
    for size in (len(values) * 4 // 5, len(values) // 5, 20, 7):
        found = verdicts_of_parts(values, interval, region, size)
        assert set(found) <= {whole, "undecided"}
        rates.append(found.count(whole))
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 45
    assert rates[-1] == 0


@pytest.mark.parametrize("images", [8, 20, 60])
def test_a_loss_at_the_margin_is_called_redundant_at_the_stated_rate(images: int) -> None:
    """The null: exactly as much is lost as may be. "No harm" must not come of few data."""
    rng = np.random.default_rng(images)
    change = -(rng.random((images, 1000)) < 0.0501).astype(float)
    before = np.ones_like(change)
    agrees = paired_difference(before + change, before).low >= -0.05
    assert agrees.mean() <= 0.05


def test_a_planted_loss_and_planted_sameness_are_found() -> None:
    groups = np.repeat(np.arange(100), 5)
    before = np.ones(500)
    judged = {}
    for name, share_lost in (("none", 0.0), ("much", 0.3)):
        after = before - (np.random.default_rng(1).random(500) < share_lost)
        interval = partial(paired_difference, after, before, groups)
        judged[name] = evidence(
            lambda level, times, of=interval: of(level=level, times=times), NO_LOSS, 100
        ).verdict()
    assert judged == {"none": "agrees", "much": "differs"}


def test_evidence_survives_a_table() -> None:
    found = Evidence(0.2, 0.01, 40.0)
    assert Evidence.from_row(found.row()) == found
    assert found.verdict() == "differs"
    assert found.verdict(0.06) == "undecided"


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with_none = holm([0.01, float("nan"), 0.02])
    assert with_none[::2] == pytest.approx([0.02, 0.02])
    assert np.isnan(with_none[1])


def test_holm_finds_nothing_in_true_nulls_more_often_than_stated() -> None:
    rng = np.random.default_rng(0)
    false = [min(holm(rng.random(8).tolist())) <= 0.05 for _ in range(2000)]
    assert np.mean(false) <= 0.06


@pytest.mark.parametrize(("lost", "won", "same"), [(6, 0, 10), (5, 0, 0), (9, 2, 3), (4, 4, 1)])
def test_one_question_per_image_is_mcnemars_exact_test(lost: int, won: int, same: int) -> None:
    change = np.array([-1.0] * lost + [1.0] * won + [0.0] * same)
    theirs = stats.binomtest(lost, lost + won).pvalue
    assert float(paired_test(change)) == pytest.approx(theirs)


def test_images_are_swapped_as_wholes() -> None:
    """Against all sign flips written out."""
    groups = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 5])
    change = np.array([-1.0, -1, 0, -1, 1, -1, -1, -1, 0, -1, 1, -1])
    sums = np.array([change[groups == g].sum() for g in range(6)])
    every = [abs(np.dot(signs, sums)) for signs in product((-1, 1), repeat=6)]
    assert float(paired_test(change, groups)) == pytest.approx(np.mean(every >= abs(sums.sum())))
    tenths = float(paired_test(change + 1e-3, groups))
    assert tenths == pytest.approx(float(paired_test(change, groups)), abs=0.15)
    assert float(paired_test(np.zeros(9))) == 1.0
    assert np.isnan(paired_test(np.full((9, 1), np.nan))).all()


def test_paired_tests_find_a_planted_loss_and_nothing_in_a_null() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 4)
    propensity = rng.choice((-1.0, 1.0), (20, 500))[groups]
    null = propensity * (rng.random((80, 500)) < 0.3)
    assert (paired_test(null, groups) <= 0.05).mean() <= 0.06
    planted = -(rng.random((80, 50)) < 0.2).astype(float)
    assert (paired_test(planted, groups) <= 0.05).mean() > 0.95


def test_an_estimate_without_interval_decides_nothing() -> None:
    nothing = Estimate(np.array([0.6]), np.array([np.nan]), np.array([np.nan]))
    found = evidence(lambda level, times: nothing, ABOUT_60, 3)
    assert found.verdict() == "undecided"
    assert found.p == 1.0
