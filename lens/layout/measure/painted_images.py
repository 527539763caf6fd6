"""Where the processor puts the parts of an image, measured by showing it painted images.

Processors resize, pad, crop, cut into tiles and reorder patches, each in its own way, and report
little of it: a rule written down for one of them is silently wrong for the next. So the same call
is repeated with images of the same sizes whose brightness rises from left to right, or from top
to bottom: the value that arrives in an element of the pixel tensor says which place of the image
that element shows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import repeat
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .colour_levels import DARK, LIGHT, SHOWN, ColourLevels, Values, shows
from .pixel_origins import PixelOrigins
from .placed_by_rule import PlacingRules
from .placing_rules import TensorForm

# Brightness ``[height, width]``, or one for each colour ``[height, width, colour]``.
Brightness = NDArray[np.uint8]
RepeatCall = Callable[[list[list[Image.Image]], Sequence[int]], Mapping[str, Tensor]]
"""Runs the processor call that made a batch once more, with other images of the same sizes.

Takes the images of some samples, and which samples of the batch these are.
"""

Form = Literal["by sample", "in a row"]
FORMS: tuple[Form, ...] = get_args(Form)
"""In which an image processor may take the images of several samples."""

_TILT = 1 / 16  # of a ramp to its other axis: rounding to whole levels then differs line by line
_DIGIT = 16  # images told apart by one painted brightness


@dataclass(frozen=True, eq=False)
class Learned:
    """What is learned of a processor from its first calls, which makes later ones cheaper.

    Attributes:
        colours: By tensor; None for one whose colours are not so simple.
        alone: By numbers of images in the samples, in which form the image processor takes them
            without text and makes the same of them; None if in none.
        rules: By tensor how it places images, as far as sizes that were measured tell.
    """

    colours: dict[str, ColourLevels | None] = field(default_factory=dict)
    rules: dict[str, PlacingRules] = field(default_factory=lambda: defaultdict(PlacingRules))
    alone: dict[tuple[int, ...], Form | None] = field(default_factory=dict)


class MeasuredOrigins:
    """The origins of a processor call's pixel tensors, measured when first asked for.

    Painted in grey it takes four calls, and more for several images. What is ``learned`` from these
    and one more call makes one painting do for other sizes, without the text where that is known
    to make no difference, and none where the rule that places an image is known by then.
    """

    def __init__(
        self,
        repeat_call: RepeatCall,
        images: Sequence[Sequence[Image.Image]],
        samples: Sequence[int],
        learned: Learned | None = None,
        image_processor: Any = None,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._repeat_call = repeat_call
        self._samples = samples
        self._images = [image for row in images for image in row]
        self._sizes = [[image.size for image in row] for row in images]
        self._learned = Learned() if learned is None else learned
        self._colours = self._learned.colours
        self._image_processor = image_processor
        self._tensors = tensors or {}
        self._shapes = {name: tensor.shape for name, tensor in _real(self._tensors).items()}
        self._measured: dict[str, PixelOrigins] | None = None

    def __getitem__(self, name: str) -> PixelOrigins | None:
        """Those of one tensor, or None where it does not depend on the images."""
        if self._measured is None:
            known = None
            if self._colours and all(self._colours.values()):
                known = self._by_rule() or self._in_colour()
            self._measured = self._in_grey() if known is None else known
        return self._measured.get(name)

    def _by_rule(self) -> dict[str, PixelOrigins] | None:
        """By what was measured of other sizes; None where that does not tell for certain."""
        origins = {}
        for name, levels in self._colours.items():
            form = self._form(name)
            if form is None or levels is None:
                return None
            tensor, rules = self._tensors[name], self._learned.rules[name]
            placed = rules.placed(self._images[0], form, tensor, levels, self._resampling())
            if placed is None:
                return None
            origins[name] = placed
        return origins

    def _resampling(self) -> Image.Resampling:
        """How the image processor says that it resizes."""
        said = getattr(self._image_processor, "resample", None)
        return Image.Resampling(said) if isinstance(said, int) else Image.Resampling.BICUBIC

    def _learn(self, origins: Mapping[str, PixelOrigins]) -> dict[str, PixelOrigins]:
        for name, measured in origins.items():
            form = self._form(name)
            if form is not None and form.shape == measured.x.shape:
                self._learned.rules[name].learn(self._images[0].size, form, measured)
        return dict(origins)

    def _form(self, name: str) -> TensorForm | None:
        """What a tensor is made of; None where it is not that of one image."""
        if len(self._images) != 1 or name not in self._tensors:
            return None
        return TensorForm.of(self._tensors[name], self._tensors)

    def _in_colour(self) -> dict[str, PixelOrigins] | None:
        """By one painting; None where what comes back is not what was learned."""
        painted = self._paint(lambda size, _: _coloured(size), places=True)
        origins, owners = {}, self._digits()
        for name, levels in self._colours.items():
            values = painted.get(name)
            if levels is None or values is None:
                return None
            told = levels.told(values)
            if told is None:
                # What was wrong once is not tried again.
                self._colours[name] = None
                return None
            if any(of[name].shape != values.shape for of in owners):
                return None
            steep, flat, shown = told
            zero, span = levels.everywhere(values.ndim)
            digits = [(of[name] - zero) / span for of in owners]
            origins[name] = _origins(steep, flat, shown, digits)
        return self._learn(origins)

    def _in_grey(self) -> dict[str, PixelOrigins]:
        dark = self._paint(lambda size, _: _plain(size, DARK))
        light = self._paint(lambda size, _: _plain(size, LIGHT))
        across = self._paint(lambda size, _: _ramp(size))
        down = self._paint(lambda size, _: _ramp(size[::-1]).T)
        owners = self._digits()
        coloured = {}
        if not self._colours:
            coloured = self._paint(lambda size, _: _coloured(size), places=True)
        origins = {}
        for name, zero in dark.items():
            if any(run[name].shape != zero.shape for run in (light, across, down, *owners)):
                self._colours[name] = None
                continue  # its form depends on what the image shows: no places can be read off
            span = light[name] - zero
            shown = shows(span)
            if not shown.any():
                continue
            safe = np.where(shown, span, np.float32(1))
            steep, flat, *digits = ((run[name] - zero) / safe for run in (across, down, *owners))
            origins[name] = _origins(steep, flat, shown, digits)
            if name in coloured:
                told = np.stack([steep, flat, np.full_like(steep, SHOWN)])
                self._colours[name] = (
                    ColourLevels.learned(zero, span, shown, coloured[name], told)
                    if coloured[name].shape == zero.shape
                    else None
                )
        return self._learn(origins)

    def _digits(self) -> list[dict[str, NDArray[np.float32]]]:
        """Paintings in which each image has a brightness of its own; none for a single image."""
        number = sum(map(len, self._sizes))
        places = math.ceil(math.log(max(number, 2), _DIGIT)) if number > 1 else 0
        return [
            self._paint(lambda size, i, p=place: _digit(size, i, p))  # type: ignore[misc]
            for place in range(places)
        ]

    def _paint(
        self, brightness: Callable[[tuple[int, int], int], Brightness], *, places: bool = False
    ) -> dict[str, NDArray[np.float32]]:
        """The real tensors of painted images; ``places`` says that no two places are alike."""
        index, nested = 0, []
        for row in self._sizes:
            painted = []
            for size in row:
                made = brightness(size, index)
                grey = made.ndim == 2
                painted.append(
                    Image.fromarray(repeat(made, "y x -> y x rgb", rgb=3) if grey else made)
                )
                index += 1
            nested.append(painted)
        numbers = tuple(map(len, nested))
        form = self._learned.alone.get(numbers)
        if form is not None:
            found = self._alone(nested, form)
            if {name: tensor.shape for name, tensor in found.items()} == self._shapes:
                return _arrays(found)
            self._learned.alone[numbers] = None
        found = _real(self._repeat_call(nested, self._samples))
        if places and numbers not in self._learned.alone:
            forms = (f for f in FORMS if _same(self._alone(nested, f), found))
            self._learned.alone[numbers] = next(forms, None)
        return _arrays(found)

    def _alone(self, images: list[list[Image.Image]], form: Form) -> dict[str, Tensor]:
        """What the image processor makes of images by itself; nothing where it fails."""
        given = images if form == "by sample" else [image for row in images for image in row]
        try:
            return _real(self._image_processor(images=given, return_tensors="pt"))
        # Whatever it raises that is used to other things around it.
        except Exception:
            return {}


def _real(made: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in made.items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    }


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return (
        bool(others)
        and some.keys() == others.keys()
        and all(torch.equal(some[name], others[name]) for name in others)
    )


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}


def _origins(
    steep: Values, flat: Values, shown: NDArray[np.bool_], digits: Sequence[Values]
) -> PixelOrigins:
    """Places and owners by the levels that arrived of both ramps and of the images' digits."""
    scale = 1 - 2 * _TILT
    x = ((1 - _TILT) * steep - _TILT * flat) / scale
    y = ((1 - _TILT) * flat - _TILT * steep) / scale
    owner = np.zeros(shown.shape, dtype=np.int32)
    for place, level in enumerate(digits):
        owner += np.rint(level * (_DIGIT - 1)).astype(np.int32) * _DIGIT**place
    nowhere, nobody = np.float32(np.nan), np.int32(-1)
    return PixelOrigins(
        np.where(shown, x, nowhere), np.where(shown, y, nowhere), np.where(shown, owner, nobody)
    )


def _coloured(size: tuple[int, int]) -> Brightness:
    """Both ramps in red and green, and in blue what says that the image is shown."""
    made = np.empty((*size[::-1], 3), dtype=np.uint8)
    made[..., 0], made[..., 1] = _ramp(size), _ramp(size[::-1]).T
    made[..., 2] = round(DARK + (LIGHT - DARK) * SHOWN)
    return made


def _ramp(size: tuple[int, int]) -> Brightness:
    """Brightness that rises from left to right, and a little from top to bottom."""
    x, y = ((np.arange(length) + 0.5) / length * (LIGHT - DARK) for length in size)
    across, down = ((1 - _TILT) * x + DARK + 0.5, _TILT * y)
    # Rounded, by cutting off what a half was added to.
    return np.add.outer(down.astype(np.float32), across.astype(np.float32)).astype(np.uint8)


def _digit(size: tuple[int, int], image: int, place: int) -> Brightness:
    digit = image // _DIGIT**place % _DIGIT
    return _plain(size, int(DARK + (LIGHT - DARK) * digit / (_DIGIT - 1)))


def _plain(size: tuple[int, int], brightness: int) -> Brightness:
    return np.full(size[::-1], brightness, dtype=np.uint8)
