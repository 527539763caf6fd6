"""Which layer it is: the observed curve against those of text whose layer is known.

A curve always has a highest point, that of random vectors too, and so has one of tokens from all
layers. Three things have to hold before a layer is named: tokens are nearer to text than with their
dimensions shuffled; the observed curve is that of one layer and not of several; and there are
enough images to say so. docs/statistics.md has how often nothing is taken for something.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import nnls

from ..select_rows import one
from ..statistics import LEVEL, MIN_IMAGES, Estimate, resampling_weights
from ..statistics.estimate import ImageSums, reach
from .curves_by_layer import MEASURES, STANDARDISED, TextCurves, VisualCurves

OVER_IMAGES = "95 % over images"
WITHIN = 1
"""How many layers from the named one still count as it."""
MOSTLY = 2 / 3
"""How much of a curve layers within one have to explain before one of them stands out."""

_MIXED_DRAWS = 200
_LEAST_DRAWS = 2  # in a tail, below which a bootstrap says nothing of it

Kind = Literal["layer", "none", "chance", "few", "unknown"]


class Answer(NamedTuple):
    """What the table says about the layer.

    ``layer``: one stands out; ``none`` does; ``chance``: not nearer to text than shuffled tokens;
    ``few`` images; ``unknown``: nothing to compare, such as one token or one sentence.
    """

    kind: Kind
    layer: dict[str, Any]
    share: dict[str, Any]
    p: float


def answer(frame: pd.DataFrame) -> Answer:
    """Read it from the table of `alignment`."""
    layer = one(frame, measure="nearest layer", by=STANDARDISED.name)
    share, p = one(frame, measure="share within one layer"), one(frame, measure="chance p")["value"]
    kind: Kind = "layer"
    if not np.isfinite([layer["value"], p]).all():
        kind = "unknown"
    elif p > 1 - LEVEL:
        kind = "chance"
    elif np.isnan(share["low"]):
        kind = "few"
    elif share["low"] < MOSTLY:
        kind = "none"
    return Answer(kind, layer, share, float(p))


@dataclass(frozen=True)
class Calibration:
    """What curves look like where the answer is known.

    Attributes:
        profiles: Mean curve of the text of each layer, above that of shuffled text.
        chance: Mean curve of the shuffled visual tokens.
    """

    profiles: Float[np.ndarray, "of layer"]
    chance: Float[np.ndarray, " layer"]

    def nearest(self, curves: Float[np.ndarray, "*draw layer"]) -> Float[np.ndarray, "*draw"]:
        """The layer whose text has the most similar curve, however high; NaN where none has."""
        lengths = np.linalg.norm(self.profiles, axis=1)
        fits = (curves - self.chance) @ (self.profiles / lengths[:, None]).T
        known = np.isfinite(fits).all(-1)
        found: NDArray[np.float64] = np.where(known, np.nan_to_num(fits).argmax(-1), np.nan)
        return found

    def share_within_one(self, curve: Float[np.ndarray, " layer"]) -> float:
        """How much of a curve the layers within one of the nearest explain, 0 to 1.

        The curve is taken for a sum of text's curves with weights of at least 0, so that dilution
        lowers all weights, and several layers share them.
        """
        layer = self.nearest(curve)
        if np.isnan(layer):
            return float("nan")
        weights, _ = nnls(self.profiles.T, curve - self.chance)
        near = np.abs(np.arange(len(weights)) - layer) <= WITHIN
        return float(weights[near].sum() / weights.sum()) if weights.any() else 0.0


@dataclass(frozen=True)
class Resampled:
    """Curves of resampled images.

    Attributes:
        mean: Over all of them.
        drawn: Over each resample, spread as far as Student's interval is wider than the normal one.
        images: How many there are.
    """

    mean: Float[np.ndarray, " layer"]
    drawn: Float[np.ndarray, "draw layer"]
    images: int

    @classmethod
    def of(
        cls,
        values: Float[np.ndarray, "unit layer"],
        images: Int[np.ndarray, " unit"] | None,
        *,
        seed: int = 0,
        times: int = 1,
    ) -> "Resampled":
        """Resample whole images, each counted so many times."""
        sums = ImageSums.of(values, images)
        weights = resampling_weights(len(sums.sums), seed=seed)
        with np.errstate(invalid="ignore"):
            drawn = (weights @ sums.sums) / (weights @ sums.counts)
        n = len(sums.sums) * times
        tail = np.full(2, (1 - LEVEL) / 2)
        student, normal = reach(tail, np.array([max(n - 1.0, 1.0), 1e6]))
        wider = student / normal * np.sqrt(n / max(n - 1, 1) / times)
        return cls(sums.mean, sums.mean + wider * (drawn - sums.mean), n)

    def interval(
        self, value: float, drawn: Float[np.ndarray, " draw"], level: Any = LEVEL
    ) -> Estimate:
        """Of what was found in the resamples; unbounded at levels beyond their number."""
        tail = (1 - np.ravel(level)) / 2
        low, high = (np.quantile(drawn, ends, method="inverted_cdf") for ends in (tail, 1 - tail))
        few = tail * len(drawn) < _LEAST_DRAWS
        low, high = np.where(few, -np.inf, low), np.where(few, np.inf, high)
        unknown = self.images < MIN_IMAGES or not np.isfinite(drawn).all()
        low, high = (np.where(unknown, np.nan, ends) for ends in (low, high))
        return Estimate(np.full(len(tail), value), low, high)


def answer_rows(found: VisualCurves, text: TextCurves, seed: int) -> Iterator[dict[str, object]]:
    """Of every measure the nearest layer; of the deciding one what it takes to name a layer."""
    for measure in MEASURES:
        values = found.entry[measure]
        profiles = text.reference[measure] - text.chance[measure]
        whole = Calibration(profiles, mean_curve(found.random[measure]))
        of_tokens = len(values) == len(found.images)
        resampled = Resampled.of(values, found.images if of_tokens else None, seed=seed)
        layer = float(whole.nearest(resampled.mean))
        drawn = whole.nearest(resampled.drawn)
        place = {"by": measure.name, "centred": measure.centred, "band": OVER_IMAGES}
        row = resampled.interval(layer, drawn).row(0)
        yield {"measure": "nearest layer", **place, **row}
        if measure == STANDARDISED:
            share = whole.share_within_one(resampled.mean)
            some = [whole.share_within_one(curve) for curve in resampled.drawn[:_MIXED_DRAWS]]
            row = resampled.interval(share, np.array(some)).row(0)
            yield {"measure": "share within one layer", **place, **row}
            p = chance_p(found.shuffled)
            yield {"measure": "chance p", "by": measure.name, "value": p}


def chance_p(curves: Float[np.ndarray, "set layer"]) -> float:
    """How likely the first curve would be so high at any layer if it were one of the others.

    All curves are standardised alike, so the rank of the first one's highest point is exact.
    """
    if not np.isfinite(curves).all():
        return float("nan")
    spread = curves.std(0)
    highest = ((curves - curves.mean(0)) / np.where(spread > 0, spread, np.inf)).max(1)
    return float((highest >= highest[0]).mean())


def mean_curve(values: Float[np.ndarray, "unit layer"]) -> Float[np.ndarray, " layer"]:
    """Mean over what was observed."""
    return ImageSums.of(values, None).mean
