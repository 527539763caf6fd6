"""How often the intervals of the analyses cover the truth, on simulated images.

An interval of nominal 95 % that covers less flatters. The situations are those of the analyses:
numbers and shares, one question per image and several, differences of the same questions, pairs
of images; each for 8 images, the fewest for which there is an interval, 20 and 60. The same samples
are given to the percentile bootstrap over images and to Student's t, for comparison. The exit code
is 1 if an interval of the analyses covers less than 93 % in any cell.

    python benchmarks/coverage.py                      # a minute; the table of docs/statistics.md
    python benchmarks/coverage.py --samples 500
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from embedlens.analyses.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_pairs,
    paired_difference,
    proportion,
)

IMAGES = (8, 20, 60)
LIMIT = 0.93
MOST_PER_IMAGE = 8
ALIKE = 0.3  # correlation of the answers about one image

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Array]


@dataclass(frozen=True)
class Situation:
    """A kind of data with a known mean.

    Attributes:
        name: As the table calls it.
        truth: The mean that intervals should cover.
        draw: Gives ``[image, observation, sample]``, NaN where an image has fewer observations.
        estimate: The interval of the analyses, of ``[observation, sample]`` with its images.
    """

    name: str
    truth: float
    draw: Draw
    estimate: Callable[[Array, NDArray[np.int64]], Estimate]


def one_each(draw: Callable[[np.random.Generator, tuple[int, ...]], Array]) -> Draw:
    """One observation per image."""
    return lambda rng, images, samples: draw(rng, (images, 1, samples))


def several(
    draw: Callable[[np.random.Generator, tuple[int, ...], Array], Array],
    propensity: Callable[[np.random.Generator, tuple[int, ...]], Array],
) -> Draw:
    """One to eight observations per image, alike by what the image is."""

    def drawn(rng: np.random.Generator, images: int, samples: int) -> Array:
        of_image = propensity(rng, (images, 1, samples))
        values = draw(rng, (images, MOST_PER_IMAGE, samples), of_image)
        how_many = rng.integers(1, MOST_PER_IMAGE + 1, (images, 1, samples))
        return np.where(np.arange(MOST_PER_IMAGE)[None, :, None] < how_many, values, np.nan)

    return drawn


def answers(p: float) -> Draw:
    """Right with chance p, one question per image."""
    return one_each(lambda rng, shape: (rng.random(shape) < p).astype(float))


def answers_alike(p: float) -> Draw:
    """Right with a chance that differs by image, p on average."""
    a, b = (share * (1 / ALIKE - 1) for share in (p, 1 - p))
    return several(
        lambda rng, shape, chance: (rng.random(shape) < chance).astype(float),
        lambda rng, shape: rng.beta(a, b, shape),
    )


def changes(lost: float, won: float) -> Draw:
    """-1 for a question lost, 1 for one won, one question per image."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        u = rng.random(shape)
        return (u > 1 - won).astype(float) - (u < lost)

    return one_each(draw)


def changes_alike(lost: float, won: float) -> Draw:
    """The same, where some images lose more of their questions than others."""
    a, b = (share * (1 / ALIKE - 1) for share in (lost, 1 - lost))

    def draw(rng: np.random.Generator, shape: tuple[int, ...], chance: Array) -> Array:
        u = rng.random(shape)
        return (u > 1 - won / (1 - lost) * (1 - chance)).astype(float) - (u < chance)

    return several(draw, lambda rng, shape: rng.beta(a, b, shape))


def mean(bounds: tuple[float, float] | None = None) -> Callable[..., Estimate]:
    """The interval of a mean of numbers."""
    return lambda values, groups: bootstrap_mean(values, groups, bounds=bounds)


def difference(values: Array, groups: NDArray[np.int64]) -> Estimate:
    """The interval of a difference, from what was lost and won."""
    before = np.where(np.isnan(values), np.nan, values < 0)
    return paired_difference(before + values, before, groups)


NORMAL, SKEWED = np.sqrt(0.5), np.exp(0.5)
SITUATIONS = (
    Situation(
        "normal numbers",
        0.0,
        one_each(lambda rng, shape: rng.normal(size=shape)),
        mean(),
    ),
    Situation(
        "normal numbers, several per image",
        0.0,
        several(
            lambda rng, shape, image: image + NORMAL * rng.normal(size=shape),
            lambda rng, shape: NORMAL * rng.normal(size=shape),
        ),
        mean(),
    ),
    Situation(
        "skewed numbers (log-normal)",
        SKEWED,
        one_each(lambda rng, shape: rng.lognormal(size=shape)),
        mean(),
    ),
    Situation(
        "skewed numbers, several per image",
        SKEWED,
        several(
            lambda rng, shape, image: np.exp(image + NORMAL * rng.normal(size=shape)),
            lambda rng, shape: NORMAL * rng.normal(size=shape),
        ),
        mean(),
    ),
    Situation(
        "shares of tokens, most small",
        0.2,
        one_each(lambda rng, shape: rng.beta(0.5, 2.0, shape)),
        mean((0.0, 1.0)),
    ),
    Situation(
        "shares of tokens, 9 of 10 images whole",
        0.95,
        one_each(lambda rng, shape: np.where(rng.random(shape) < 0.9, 1.0, rng.random(shape))),
        mean((0.0, 1.0)),
    ),
    Situation("proportion .5, several per image", 0.5, answers_alike(0.5), proportion),
    Situation("proportion .9, one question each", 0.9, answers(0.9), proportion),
    Situation("proportion .9, several per image", 0.9, answers_alike(0.9), proportion),
    Situation("proportion .98, one question each", 0.98, answers(0.98), proportion),
    Situation("proportion .98, several per image", 0.98, answers_alike(0.98), proportion),
    Situation("paired difference −.05 (.06 lost)", -0.05, changes(0.06, 0.01), difference),
    Situation("paired difference −.05, several", -0.05, changes_alike(0.06, 0.01), difference),
    Situation("paired difference −.05 (.3 lost)", -0.05, changes(0.30, 0.25), difference),
)


def percentile(values: Array, groups: NDArray[np.int64]) -> Estimate:
    """The percentile bootstrap over images, as the analyses had it before."""
    sums, counts = sums_of(values, groups)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), 2000).astype(float)
    drawn = (weights @ sums) / (weights @ counts)
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    return Estimate(sums.sum(0) / counts.sum(0), low, high)


def students(values: Array, groups: NDArray[np.int64]) -> Estimate:
    """Student's t over images."""
    sums, counts = sums_of(values, groups)
    value, k = sums.sum(0) / counts.sum(0), len(sums)
    residual = sums - value * counts
    error = np.sqrt(k / (k - 1) * (residual**2).sum(0)) / counts.sum(0)
    reach = student.isf(0.025, k - 1) * error
    return Estimate(value, value - reach, value + reach)


def sums_of(values: Array, groups: NDArray[np.int64]) -> tuple[Array, Array]:
    """Each image's sum and number of observations; images are numbered from 0."""
    first = np.flatnonzero(np.diff(groups, prepend=-1))
    seen = ~np.isnan(values)
    sums = np.add.reduceat(np.where(seen, values, 0.0), first, axis=0)
    return sums, np.add.reduceat(seen.astype(float), first, axis=0)


@dataclass(frozen=True)
class Cell:
    """What came of one situation with so many images: shares of the samples."""

    covers: float
    too_low: float
    too_high: float


def cell(estimate: Estimate, truth: float) -> Cell:
    """Coverage, and on which side the interval misses: below the truth or above it."""
    below, above = estimate.high < truth - 1e-12, estimate.low > truth + 1e-12
    covers = (estimate.low <= truth + 1e-12) & (estimate.high >= truth - 1e-12)
    return Cell(float(covers.mean()), float(below.mean()), float(above.mean()))


def measure(situation: Situation, images: int, samples: int, seed: int) -> tuple[Cell, Cell, Cell]:
    """The percentile bootstrap, Student's t and the analyses' interval on the same samples."""
    rng = np.random.default_rng([seed, images, SITUATIONS.index(situation)])
    cells = []
    values = situation.draw(rng, images, samples)
    groups = np.repeat(np.arange(images), values.shape[1])
    flat = values.reshape(-1, samples)
    for interval in (percentile, students, situation.estimate):
        cells.append(cell(interval(flat, groups), situation.truth))
    return cells[0], cells[1], cells[2]


def pairs_of_images(images: int, samples: int, seed: int) -> Cell:
    """The mean cosine over pairs of images whose vectors share a direction."""
    rng = np.random.default_rng([seed, images])
    width = 16

    def vectors(n: int, many: int) -> Array:
        x = rng.normal(size=(many, n, width)) * rng.lognormal(0.0, 0.5, (many, n, 1))
        x[..., 0] += 2.0
        unit: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
        return unit

    truth = float((vectors(2, 400_000).prod(1)).sum(-1).mean())
    found = [bootstrap_pairs(x @ x.T) for x in vectors(images, samples)]
    low, high = (np.array([getattr(e, side) for e in found]) for side in ("low", "high"))
    return cell(Estimate(low, low, high), truth)


def lines(samples: int, seed: int) -> Iterator[tuple[str, Cell]]:
    """Every row of the table as Markdown, with what the analyses' interval did."""
    for situation in SITUATIONS:
        for images in IMAGES:
            old, t, here = measure(situation, images, samples, seed)
            yield row(situation.name, images, f"{old.covers:.2f}", f"{t.covers:.2f}", here), here
    for images in IMAGES:
        here = pairs_of_images(images, samples // 4, seed)
        yield row("cosine over pairs of images", images, "", "", here), here


def row(name: str, images: int, old: str, t: str, here: Cell) -> str:
    """One row of the table."""
    sides = f"{here.too_low:.3f}, {here.too_high:.3f}"
    return f"| {name} | {images} | {old} | {t} | **{here.covers:.3f}** | {sides} |\n"


HEAD = """\
| situation | images | percentile bootstrap | Student’s t | here | misses below, above |
|---|---|---|---|---|---|
"""


def main() -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=4000, help="simulated studies per cell")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    worst = 1.0
    sys.stdout.write(HEAD)
    for line, here in lines(given.samples, given.seed):
        worst = min(worst, here.covers)
        sys.stdout.write(line)
        sys.stdout.flush()
    sys.stdout.write(f"\nLeast: {worst:.3f} (limit {LIMIT}); {given.samples} samples per cell.\n")
    return int(worst < LIMIT)


if __name__ == "__main__":
    sys.exit(main())
