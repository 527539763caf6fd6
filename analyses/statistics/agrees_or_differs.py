"""Verdicts by equivalence: a claim holds, fails or is undecided by where a whole interval lies.

"Not significantly different" is no agreement: the fewer the data, the more often it comes out. A
claim here names a region, and only an interval wholly inside it agrees, only one wholly outside
differs. With less data intervals are wider, so that less is decided and nothing agrees more.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from .estimate import LEVEL, Estimate

Verdict = Literal["agrees", "differs", "undecided"]
Interval = Callable[[Any, int], Estimate]
"""Gives the estimate at a level, with every image counted so many times."""

_LEAST_P = 1e-5
_HALVINGS = 16
_MOST_IMAGES = 4096


@dataclass(frozen=True)
class Region:
    """Where a claim holds: values from low to high."""

    low: float = -inf
    high: float = inf

    def decides(self, estimate: Estimate) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether the whole interval lies inside, and whether it lies outside."""
        inside = (estimate.low >= self.low) & (estimate.high <= self.high)
        outside = (estimate.high < self.low) | (estimate.low > self.high)
        return np.atleast_1d(inside), np.atleast_1d(outside)


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against a claim.

    Attributes:
        agrees: The smallest p at which the claim agrees: 1 - p is the highest level whose interval
            lies inside the claim's region; 1 where none does.
        differs: The same for lying outside.
        decided_at: Images with which it would be decided if all went on alike; NaN where more
            than 4096 would be needed.
    """

    agrees: float
    differs: float
    decided_at: float = nan

    @property
    def p(self) -> float:
        """Of whichever of the two is nearer to being decided."""
        return min(self.agrees, self.differs)

    def verdict(self, p: float | None = None) -> Verdict:
        """The verdict, by its own p or by one corrected for the other claims."""
        if (self.p if p is None else p) > 1 - LEVEL:
            return "undecided"
        return "agrees" if self.agrees <= self.differs else "differs"

    def row(self) -> dict[str, float]:
        """As columns of a table."""
        return {
            "agrees_p": self.agrees,
            "differs_p": self.differs,
            "decided_at_images": self.decided_at,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Evidence":
        """What `row` wrote."""
        return cls(*(float(row[k]) for k in ("agrees_p", "differs_p", "decided_at_images")))


def evidence(interval: Interval, region: Region, images: int) -> Evidence:
    """What one estimate from so many images says about a claim."""
    (found,) = evidence_of_many(interval, region, np.array([float(images)]))
    return found


def evidence_of_many(
    interval: Interval, region: Region, images: Float[np.ndarray, " column"]
) -> list[Evidence]:
    """What the columns of an estimate say about a claim that is made of each."""
    ps = []
    for side in (0, 1):
        fails, holds = np.full(len(images), _LEAST_P), np.ones(len(images))
        least = region.decides(interval(1 - fails, 1))[side]
        for _ in range(_HALVINGS):
            middle = np.sqrt(fails * holds)
            decided = region.decides(interval(1 - middle, 1))[side]
            fails, holds = np.where(decided, fails, middle), np.where(decided, middle, holds)
        ps.append(np.where(least, _LEAST_P, holds))
    needed = _decided_at(interval, region, images, np.minimum(*ps) <= 1 - LEVEL)
    return [Evidence(*map(float, each)) for each in zip(*ps, needed, strict=True)]


def _decided_at(
    interval: Interval, region: Region, images: NDArray[np.float64], decided: NDArray[np.bool_]
) -> Float[np.ndarray, " column"]:
    """The fewest images of the same kind that decide, to a quarter; NaN beyond 4096."""

    def enough(times: int) -> NDArray[np.bool_]:
        return np.logical_or(*region.decides(interval(LEVEL, times)))

    found = np.where(decided, images, nan)
    times = 1
    most = _MOST_IMAGES // int(images[images > 1].max(initial=1))
    while np.isnan(found).any() and times < most:
        times *= 2
        now = np.isnan(found) & (images > 1)
        for some in sorted({times * 5 // 8, times * 3 // 4, times * 7 // 8, times}):
            if times // 2 < some <= most and (now & np.isnan(found)).any():
                found = np.where(now & np.isnan(found) & enough(some), some * images, found)
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """Every p corrected for the number of claims made together (Holm 1979).

    A p that is NaN stands for no claim, and stays NaN.
    """
    order = sorted((i for i, p in enumerate(ps) if not isnan(p)), key=lambda i: ps[i])
    corrected, largest = list(map(float, ps)), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        corrected[i] = largest
    return corrected
