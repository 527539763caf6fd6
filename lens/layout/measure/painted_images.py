"""Where the processor puts the parts of an image, measured by showing it painted images.

Processors resize, pad, crop, cut into tiles and reorder patches, each in its own way, and report
little of it: a rule written down for one of them is silently wrong for the next. So the same call
is repeated with images of the same sizes whose brightness rises from left to right, or from top
to bottom: the value that arrives in an element of the pixel tensor says which place of the image
that element shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from einops import repeat
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

RepeatCall = Callable[[list[list[Image.Image]], Sequence[int]], Mapping[str, Tensor]]
"""Runs the processor call that made a batch once more, with other images of the same sizes.

Takes the images of some samples, and which samples of the batch these are.
"""

_DARK, _LIGHT = 16, 240  # away from both ends, so that resampling has room to overshoot
_TILT = 1 / 16  # of a ramp to its other axis: rounding to whole levels then differs line by line
_DIGIT = 16  # images told apart by one painted brightness


@dataclass(frozen=True, eq=False)
class PixelOrigins:
    """Which place of which image every element of one pixel tensor shows."""

    x: NDArray[np.float32]  # place in the width, 0 to 1, for each element; NaN for padding
    y: NDArray[np.float32]  # place in its height
    owner: NDArray[np.int32]  # index of the image, counted through the samples; -1 for padding

    def owners(self, leading: int) -> NDArray[np.int32]:
        """The image that is shown at each index of the ``leading`` first axes; -1 for none."""
        owners: NDArray[np.int32] = self.owner.max(axis=tuple(range(leading, self.owner.ndim)))
        return owners


class MeasuredOrigins:
    """The origins of a processor call's pixel tensors, measured when first asked for."""

    def __init__(
        self,
        repeat_call: RepeatCall,
        images: Sequence[Sequence[Image.Image]],
        samples: Sequence[int],
    ) -> None:
        self._repeat_call = repeat_call
        self._samples = samples
        self._sizes = [[image.size for image in row] for row in images]
        self._measured: dict[str, PixelOrigins] | None = None

    def __getitem__(self, name: str) -> PixelOrigins | None:
        """Those of one tensor, or None where it does not depend on the images."""
        if self._measured is None:
            self._measured = self._measure()
        return self._measured.get(name)

    def _measure(self) -> dict[str, PixelOrigins]:
        dark = self._paint(lambda size, _: np.full(size[::-1], _DARK))
        light = self._paint(lambda size, _: np.full(size[::-1], _LIGHT))
        across = self._paint(lambda size, _: _ramp(size))
        down = self._paint(lambda size, _: _ramp(size[::-1]).T)
        number = sum(map(len, self._sizes))
        digits = []
        for place in range(math.ceil(math.log(max(number, 2), _DIGIT)) if number > 1 else 0):
            digits.append(self._paint(lambda size, i, p=place: _digit(size, i, p)))  # type: ignore[misc]
        origins = {}
        for name, zero in dark.items():
            if any(run[name].shape != zero.shape for run in (light, across, down, *digits)):
                continue  # its form depends on what the image shows: no places can be read off
            span = light[name] - zero
            shown = np.abs(span) > 0.98 * np.abs(span).max(initial=0.0)
            if not shown.any():
                continue
            safe = np.where(shown, span, np.float32(1))
            steep, flat = ((run[name] - zero) / safe for run in (across, down))
            scale = 1 - 2 * _TILT
            x = ((1 - _TILT) * steep - _TILT * flat) / scale
            y = ((1 - _TILT) * flat - _TILT * steep) / scale
            owner = np.zeros(zero.shape, dtype=np.int32)
            for place, run in enumerate(digits):
                level = (run[name] - zero) / safe * (_DIGIT - 1)
                owner += np.rint(level).astype(np.int32) * _DIGIT**place
            nowhere, nobody = np.float32(np.nan), np.int32(-1)
            origins[name] = PixelOrigins(
                np.where(shown, x, nowhere),
                np.where(shown, y, nowhere),
                np.where(shown, owner, nobody),
            )
        return origins

    def _paint(
        self, brightness: Callable[[tuple[int, int], int], NDArray[np.generic]]
    ) -> dict[str, NDArray[np.float32]]:
        index, nested = 0, []
        for row in self._sizes:
            painted = []
            for size in row:
                grey = brightness(size, index).astype(np.uint8)
                painted.append(Image.fromarray(repeat(grey, "y x -> y x rgb", rgb=3)))
                index += 1
            nested.append(painted)
        found = self._repeat_call(nested, self._samples)
        return {
            name: tensor.float().cpu().numpy()
            for name, tensor in found.items()
            if tensor.is_floating_point()
        }


def _ramp(size: tuple[int, int]) -> NDArray[np.float64]:
    """Brightness that rises from left to right, and a little from top to bottom."""
    x, y = ((np.arange(length) + 0.5) / length for length in size)
    return np.rint(_DARK + (_LIGHT - _DARK) * ((1 - _TILT) * x + _TILT * y[:, None]))


def _digit(size: tuple[int, int], image: int, place: int) -> NDArray[np.float64]:
    digit = image // _DIGIT**place % _DIGIT
    return np.full(size[::-1], _DARK + (_LIGHT - _DARK) * digit / (_DIGIT - 1))
