"""Sizes placed without painting: only where a rule was measured, and the image is found there."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedlens.lens.layout.measure import measured_layouts
from embedlens.lens.layout.measure.colour_levels import DARK, LIGHT, ColourLevels
from embedlens.lens.layout.measure.painted_images import MeasuredOrigins
from embedlens.lens.layout.measure.pixel_origins import PixelOrigins, mean
from embedlens.lens.layout.measure.placed_by_rule import PlacingRules
from embedlens.lens.layout.measure.placing_rules import PictureRule, TensorForm
from embedlens.lens.visual_tokens import VisualTokens
from families import zoo
from families.family import noise

RULED = ("llava", "llava_next", "gemma3", "qwen2_vl", "deepseek_vl", "perception_lm")
LEARNED = ((120, 90), (131, 90), (140, 97))
CELL = 0.05  # share of a cell, and a pixel of the image


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory in ("_memories", "_learned"):
        monkeypatch.setattr(measured_layouts, memory, weakref.WeakKeyDictionary())


@pytest.fixture
def paintings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every painting that a processor is shown."""
    made: list[int] = []
    usual = MeasuredOrigins._paint

    def paint(self: MeasuredOrigins, *args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(MeasuredOrigins, "_paint", paint)
    return made


def blocks(size: tuple[int, int]) -> Image.Image:
    """Coarse noise, which resizing leaves what it was."""
    return noise((size[0] // 8, size[1] // 8)).resize(size, Image.Resampling.BICUBIC)


def seen(name: str, image: Image.Image) -> VisualTokens:
    return zoo.visual_lm(name).encode(image, zoo.built(name).prompt).visual


def assert_same_places(found: VisualTokens, expected: VisualTokens) -> None:
    for field in ("position", "tile", "row", "col", "kind"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    size = np.tile(expected.box[:, 2:] - expected.box[:, :2], 2)
    # Cells of padding have no size.
    assert not (np.abs(found.box - expected.box) > CELL * size + CELL).any()


@pytest.mark.quick("llava", "llava_next", "qwen2_vl")
@pytest.mark.parametrize("name", RULED)
def test_a_size_is_placed_without_painting_as_with_it(name: str, paintings: list[int]) -> None:
    for size in LEARNED:
        seen(name, blocks(size))
    learned = len(paintings)
    found = seen(name, blocks((333, 150)))
    assert len(paintings) == learned
    measured_layouts._memories.clear()
    measured_layouts._learned.clear()
    expected = seen(name, blocks((333, 150)))
    assert len(paintings) > learned
    assert_same_places(found, expected)


@pytest.mark.parametrize(
    "image",
    [Image.new("RGB", (333, 150), (90, 120, 30)), Image.linear_gradient("L").resize((333, 150))],
    ids=["plain", "stripes"],
)
def test_an_image_that_does_not_show_where_it_is_is_measured(
    image: Image.Image, paintings: list[int]
) -> None:
    for size in LEARNED:
        seen("gemma3", blocks(size))
    learned = len(paintings)
    seen("gemma3", image)
    assert len(paintings) > learned


def test_a_processor_that_does_otherwise_from_some_size_on_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part: Any = zoo.visual_lm("gemma3").processor.image_processor

    def cut(images: Any) -> Any:
        """Of wide images the left four fifths."""
        if isinstance(images, list | tuple):
            return [cut(image) for image in images]
        return (
            images.crop((0, 0, images.width * 4 // 5, images.height))
            if images.width > 300
            else images
        )

    class Cutting(type(part)):  # type: ignore[misc]
        def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(cut(images), *args, **kwargs)

    monkeypatch.setattr(part, "__class__", Cutting)
    for size in LEARNED:
        assert seen("gemma3", blocks(size)).box[:, 2].max() == pytest.approx(size[0], abs=0.5)
    visual = seen("gemma3", blocks((400, 300)))
    assert visual.box[:, 2].max() == pytest.approx(320, abs=0.5)


def test_another_orientation_is_measured(paintings: list[int]) -> None:
    for size in LEARNED:
        seen("gemma3", blocks(size))
    learned = len(paintings)
    seen("gemma3", blocks((150, 333)))
    assert len(paintings) > learned


def test_no_rule_is_believed_after_one_size(paintings: list[int]) -> None:
    seen("gemma3", blocks(LEARNED[1]))
    learned = len(paintings)
    seen("gemma3", blocks(LEARNED[2]))
    assert len(paintings) > learned


FORM = TensorForm((1, 3, 336, 336), 1, (336, 336))


@pytest.mark.parametrize(("rounding", "length"), [("down", 466), ("nearest", 467), ("up", 467)])
def test_a_crop_has_the_length_that_its_rounding_says(rounding: Any, length: int) -> None:
    # The short side becomes 336 of 480, and 667 * 336 / 480 is 466.9.
    (placing,) = PictureRule("outside", rounding, "down", None).placings((667, 480), FORM) or ()
    assert placing.pixels.tolist() == [[length, 336]]
    first = (0.5 + (length - 336) // 2) / length
    assert placing.x[0, 0] == pytest.approx(first)
    assert placing.y[0, -1] == pytest.approx(1 - 0.5 / 336)


@pytest.mark.parametrize(("rounding", "believed"), [("down", True), ("up", False)])
def test_a_size_that_is_rounded_otherwise_than_those_measured_is_measured(
    rounding: Any, believed: bool
) -> None:
    rules, size = PlacingRules(), (667, 480)
    for other in ((701, 480), (650, 481)):
        (measured,) = PictureRule("outside", "down", "down", None).placings(other, FORM) or ()
        rules.learn(other, FORM, measured.origins(FORM))
    image = blocks(size)
    length = {"down": 466, "up": 467}[rounding]
    left = (length - 336) // 2
    shown = image.resize((length, 336), Image.Resampling.BICUBIC).crop((left, 0, left + 336, 336))
    brightness = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None].float()
    pixels = (brightness - DARK) / (LIGHT - DARK)
    zero, span = np.zeros(3, np.float32), np.ones(3, np.float32)
    levels = ColourLevels(-3, zero, span, tuple(np.array([i]) for i in range(3)))
    found = rules.placed(image, FORM, pixels, levels, Image.Resampling.BICUBIC)
    assert (found is not None) == believed


@pytest.mark.parametrize("size", [(640, 480), (480, 241)])
def test_nothing_is_said_of_lengths_that_may_round_either_way(size: tuple[int, int]) -> None:
    form = TensorForm((1, 3, 240, 240), 1, (240, 240))
    assert PictureRule("inside", "down", "down", None).placings(size, form) is None


def test_padding_lies_outside_the_image() -> None:
    (placing,) = PictureRule("inside", "down", "start", None).placings((1000, 300), FORM) or ()
    assert (placing.y[0] < 1).sum() == 100
    assert placing.x[0, 0] == pytest.approx(0.5 / 336)


def test_means_of_what_is_repeated_are_those_of_all_of_it() -> None:
    line = torch.linspace(0, 1, 7).numpy()
    repeated = np.broadcast_to(line, (2, 3, 5, 7))
    np.testing.assert_allclose(mean(repeated, keep=-1), line)
    np.testing.assert_array_equal(mean(repeated, keep=-1), mean(repeated.copy(), keep=-1))
    owner = np.broadcast_to(np.array([0, -1]).reshape(2, 1, 1, 1), repeated.shape)
    origins = PixelOrigins(repeated, repeated, owner.astype(np.int32))
    assert origins.owners(1).tolist() == [0, -1]
