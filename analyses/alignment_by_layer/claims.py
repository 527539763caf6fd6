"""What the paper says of alignment, beside what was found; nothing where nothing stands out."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ..analysis import Result
from ..claim import ABSTRACT, SECOND_HAND, Claim
from ..numbers_in_words import number
from ..select_rows import one, select
from ..statistics import Estimate, Evidence, Region, evidence
from .answer import Answer, Calibration, Resampled, answer

CLOSE = 1.5
"""How many times the smaller of two norms the larger may be, to be called close."""

_NO_LAYER = {
    "none": "no layer stands out",
    "chance": "not aligned above chance",
    "few": "too few images to name a layer",
    "unknown": "nothing to compare",
}


class Norms(NamedTuple):
    """Median norms of entering tokens and of the layer of text that is nearest by norm."""

    layer: int
    entry: float
    text: float

    @classmethod
    def of(cls, result: Result) -> "Norms":
        """From the table."""
        layer = int(one(result.frame, measure="norm-matched layer")["value"])
        entry = one(result.frame, measure="norm", states="entry", layer=0)["value"]
        text = one(result.frame, measure="norm", states="text", layer=layer)["value"]
        return cls(layer, float(entry), float(text))

    @property
    def close(self) -> bool:
        """Whether the two may be called close."""
        return max(self.entry, self.text) <= CLOSE * min(self.entry, self.text)


def claims(result: Result) -> list[Claim]:
    """The two claims; undecided where the tokens are not nearer to text than chance."""
    found, last = answer(result.frame), int(result.meta["layers"])
    norms = Norms.of(result)
    aligned = found.kind in ("layer", "none")
    return [
        Claim(
            "Alive tokens align with intermediate layers rather than with the input embeddings "
            "(here: by direction).",
            ABSTRACT,
            direction_in_words(found, last),
            evidence=_by_direction(result) if found.kind == "layer" else None,
            agrees_if="the interval of the nearest layer lies in the middle half of the layers",
        ),
        Claim(
            "Norms of entering visual tokens match those of text in middle layers.",
            SECOND_HAND,
            f"nearest layer {norms.layer}: text {number(norms.text, 1)}, visual "
            f"{number(norms.entry, 1)}" + ("" if aligned else f"; {_NO_LAYER[found.kind]}"),
            evidence=_by_norm(result) if aligned else None,
            agrees_if=f"the nearest layer by norm is in that middle and within a factor of {CLOSE}",
        ),
    ]


def direction_in_words(found: Answer, last: int) -> str:
    """The nearest layer with its interval, or why none is named."""
    if found.kind != "layer":
        return _NO_LAYER[found.kind]
    low, high, layer = (int(found.layer[name]) for name in ("low", "high", "value"))
    return f"nearest layer {layer} ({low} to {high}), of 0 to {last}"


def _by_direction(result: Result) -> Evidence:
    whole = Calibration(*(result.tensors[name].numpy() for name in ("profiles", "chance")))
    return _in_the_middle(result, result.tensors["cosine/entry/standardised"], whole.nearest)


def _by_norm(result: Result) -> Evidence:
    text = select(result.frame, measure="norm", states="text").sort_values("layer")["value"]
    layers = np.log(text.to_numpy(dtype=np.float64))

    def nearest(curves: Float[np.ndarray, "*draw one"]) -> Float[np.ndarray, "*draw"]:
        """The nearest layer by norm, -1 where none is close."""
        away = np.abs(curves - layers)
        found: NDArray[np.float64] = np.where(away.min(-1) <= np.log(CLOSE), away.argmin(-1), -1.0)
        return found

    return _in_the_middle(result, result.tensors["norm"].log()[:, None], nearest)


def _in_the_middle(
    result: Result, values: Any, nearest: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Evidence:
    """Evidence that the nearest layer is an intermediate one."""
    numbers, images = values.double().numpy(), result.tensors["image"].numpy()
    last, n = int(result.meta["layers"]), len(np.unique(images))

    @cache
    def drawn(times: int) -> tuple[Resampled, float, NDArray[np.float64]]:
        made = Resampled.of(numbers, images, times=times)
        return made, float(nearest(made.mean)), nearest(made.drawn)

    def interval(level: Any, times: int) -> Estimate:
        made, value, layers = drawn(times)
        return made.interval(value, layers, level)

    return evidence(interval, Region(last / 4, 3 * last / 4), n)
