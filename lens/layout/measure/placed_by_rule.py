"""Places of a new image size by a rule that was measured on other sizes, and seen to hold for it.

Painting an image of every new size costs as much as processing it. So every measured size is
compared with all the ways of ``placing_rules``, and those that are off are given up. A new size is
placed without painting where those that are left say the same, and where the user's own image is
found in the pixel tensor just there, and not a little beside. An image that looks alike everywhere
says nothing, and its size is measured.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from PIL import Image
from torch import Tensor

from .arrived import Arrived
from .colour_levels import DARK, LIGHT, ColourLevels, Values
from .pixel_origins import PixelOrigins, means
from .placing_rules import Placing, Rule, Size, TensorForm, all_rules

_ENOUGH = 2  # measured sizes of its orientation that a rule must have agreed with
_OFF, _WORSE = 0.35, 0.1  # pixels that a rule may be off by, and more than the best one
_UNLIKE = 0.1 * (LIGHT - DARK)  # by which the image may differ from what is found in its places
_CLEARER = 2.0  # times what it differs there, by which it must differ elsewhere


class PlacingRules:
    """The rules that agree with all that was measured of one pixel tensor of a processor."""

    def __init__(self) -> None:
        self._left: list[Rule] = list(all_rules())
        self._agreed: Counter[tuple[Rule, bool]] = Counter()

    def learn(self, size: Size, form: TensorForm, origins: PixelOrigins) -> None:
        """Give up the rules that do not place an image of this size as it was measured."""
        one = form.shape[-3:] if form.pictures else (-1, 1, 1)
        number = form.pictures or form.shape[0]
        x, y = (
            means(place.reshape(number, *one), (1, axis)).reshape(number, -1)
            for place, axis in ((origins.x, 2), (origins.y, 3))
        )
        off: dict[Rule, float] = {}
        for rule in self._left:
            placings = rule.placings(size, form)
            if placings is not None:
                off[rule] = min((_off(one, x, y) for one in placings), default=np.inf)
        most = min(_OFF, min(off.values(), default=0.0) + _WORSE)
        self._left = [rule for rule in self._left if off.get(rule, 0.0) <= most]
        self._agreed.update((rule, _wide(size)) for rule in self._left if rule in off)

    def placed(
        self,
        image: Image.Image,
        form: TensorForm,
        tensor: Tensor,
        levels: ColourLevels,
        resample: Image.Resampling,
    ) -> PixelOrigins | None:
        """Where the elements of the tensor lie in the image; None where that must be measured."""
        found: list[Placing] = []
        for rule in self._left:
            placings = rule.placings(image.size, form)
            if placings is None or self._agreed[rule, _wide(image.size)] < _ENOUGH:
                return None
            found += [one for one in placings if not any(map(one.same, found))]
        if not found:
            return None
        arrived = Arrived(image, form, tensor, levels, resample)
        best = found[0]
        if len(found) > 1:
            off = [arrived.off(one) for one in found]
            best = found[off.index(min(off))]
            if sorted(off)[1] < _clear(min(off)):
                return None
        axes = arrived.off_and_beside(best)
        found_there = all(here <= _UNLIKE and beside >= _clear(here) for here, beside in axes)
        return best.origins(form) if found_there else None


def _clear(here: float) -> float:
    """How far strips must be off elsewhere for being off so little here to mean anything."""
    return _CLEARER * here + 1


def _off(placing: Placing, x: Values, y: Values) -> float:
    """Pixels by which measured places of columns and rows are off, the larger of both axes."""
    worst = 0.0
    for axis, (told, measured) in enumerate(((placing.x, x), (placing.y, y))):
        apart = (measured - told) * placing.pixels[:, axis, None]
        apart = apart[np.isfinite(apart)]
        worst = max(worst, float(np.sqrt(np.mean(apart**2))) if len(apart) else np.inf)
    return worst


def _wide(size: Size) -> bool:
    return size[0] >= size[1]
