"""What a claim says of the images that would decide it, against scipy's exact bounds."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import binomtest

from embedlens.analyses.claim import SECOND_HAND, Claim, judged
from embedlens.analyses.statistics import Evidence, Region, evidence, proportion

REGION = Region(0.55, 0.65)
STEPS = (1, 5 / 4, 3 / 2, 7 / 4)


def claim_of(right: int, images: int) -> Claim:
    """A claim about a share, from one question about each image."""
    values = (np.arange(images) < right).astype(float)
    found = evidence(
        lambda level, times: proportion(values, level=level, times=times), REGION, images
    )
    return Claim("the share is about 60 %", SECOND_HAND, f"{right / images:.0%}", evidence=found)


def decides(right: int, images: int) -> bool:
    bounds = binomtest(right, images).proportion_ci(0.95, "exact")
    inside = bounds.low >= REGION.low and bounds.high <= REGION.high
    return bool(inside or bounds.high < REGION.low or bounds.low > REGION.high)


def fewest(right: int, images: int) -> int | None:
    """By trying: once, twice, … the images, with three steps before each doubling."""
    times = sorted({int(step * 2**k) for k in range(12) for step in STEPS if step * 2**k % 1 == 0})
    tried = [n * images for n in times if n * images <= 4096]
    return next((n for n in tried if decides(round(right / images * n), n)), None)


@pytest.mark.parametrize(
    ("right", "images"), [(24, 40), (12, 20), (30, 48), (9, 20), (15, 20), (5, 8), (21, 37)]
)
def test_the_images_that_would_decide_are_those_of_exact_bounds(right: int, images: int) -> None:
    (claim,) = judged([claim_of(right, images)])
    assert claim.verdict == "undecided"
    assert not decides(right, images)
    said = re.search(r"about (\d+) images like these would decide it", claim.here)
    assert said is not None
    assert int(said[1]) == fewest(right, images)


def test_a_share_on_the_border_is_never_decided() -> None:
    (claim,) = judged([claim_of(13, 20)])
    assert fewest(13, 20) is None
    assert claim.here.endswith("no feasible number of images would decide it")


def test_what_the_other_claims_leave_undecided_is_said_to_be_decided_alone() -> None:
    alone = Claim("one", SECOND_HAND, "here", evidence=Evidence(0.03, 1.0, 40.0))
    beside = Claim("other", SECOND_HAND, "there", evidence=Evidence(0.9, 0.8))
    assert judged([alone])[0].verdict == "agrees"
    first, second = judged([alone, beside])
    assert first.verdict == second.verdict == "undecided"
    assert first.here == "here; decided alone, but not beside the other claims"


def test_a_claim_without_evidence_stays_as_it_is() -> None:
    claim = Claim("one", SECOND_HAND, "not measured")
    assert judged([claim]) == [claim]
