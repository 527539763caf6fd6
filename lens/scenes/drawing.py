"""Pixels: sprites, backgrounds, and which part of the picture each object covers."""

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .objects import IMAGE_SIZE, SceneObject, choose
from .vocabulary import COLORS, SHAPES

FloatArray = NDArray[np.float32]

_OVERSAMPLING = 4
_JITTER = 9.0
_NOISE = 28.0
_CONTRAST = 45.0
_BASE_TONES = (
    (250, 250, 250),
    (15, 15, 15),
    (128, 128, 128),
    (205, 195, 175),
    (60, 62, 75),
    (170, 180, 190),
)


@functools.cache
def sprite(kind: str, size: int) -> FloatArray:
    """How much of each pixel of a `size` × `size` box the kind covers, 0 to 1."""
    side = _OVERSAMPLING * size
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    if kind in SHAPES:
        _draw_shape(draw, kind, side)
    else:
        _draw_glyph(draw, kind, side)
    small = mask.resize((size, size), Image.Resampling.BOX)
    alpha = np.asarray(small, np.float32) / np.float32(255)
    alpha.setflags(write=False)
    return alpha


def _draw_shape(draw: ImageDraw.ImageDraw, kind: str, side: int) -> None:
    last = side - 1

    def polygon(*points: tuple[float, float]) -> None:
        draw.polygon([(x * last, y * last) for x, y in points], fill=255)

    match kind:
        case "circle":
            draw.ellipse((0, 0, last, last), fill=255)
        case "square":
            draw.rectangle((side * 0.04, side * 0.04, last * 0.96, last * 0.96), fill=255)
        case "triangle":
            polygon((0.5, 0), (1, 1), (0, 1))
        case "diamond":
            polygon((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5))
        case "cross":
            draw.rectangle((side * 0.34, 0, side * 0.66, last), fill=255)
            draw.rectangle((0, side * 0.34, last, side * 0.66), fill=255)
        case "ring":
            draw.ellipse((0, 0, last, last), fill=255)
            draw.ellipse((side * 0.27, side * 0.27, side * 0.73, side * 0.73), fill=0)
        case "star":
            polygon(*(_star_point(corner) for corner in range(10)))
        case "heart":
            draw.ellipse((0, 0, side * 0.54, side * 0.54), fill=255)
            draw.ellipse((side * 0.46, 0, last, side * 0.54), fill=255)
            polygon((0.045, 0.40), (0.955, 0.40), (0.5, 1))
        case _:
            raise ValueError(f"no drawing for the shape {kind!r}")


def _star_point(corner: int) -> tuple[float, float]:
    radius = 0.52 if corner % 2 == 0 else 0.21
    angle = corner * math.pi / 5
    return 0.5 + radius * math.sin(angle), 0.54 - radius * math.cos(angle)


def _draw_glyph(draw: ImageDraw.ImageDraw, kind: str, side: int) -> None:
    font = ImageFont.load_default(size=int(side * 1.25))
    left, top, right, bottom = draw.textbbox((0, 0), kind, font=font)
    corner = ((side - (right - left)) / 2 - left, (side - (bottom - top)) / 2 - top)
    width = max(1, side // 30)
    draw.text(corner, kind, fill=255, font=font, stroke_width=width, stroke_fill=255)


def backdrop(style: str, rng: np.random.Generator) -> FloatArray:
    """A background [y, x, rgb], 0 to 255 (noise may leave that range)."""
    tone = np.array(choose(rng, _BASE_TONES), np.float32)
    period, phase = int(rng.integers(4, 9)), int(rng.integers(8))
    horizontal = bool(rng.random() < 0.5)
    picture = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    picture[:] = tone
    other = np.clip(tone + (_CONTRAST if tone.mean() < 128 else -_CONTRAST), 0, 255)
    band = (np.arange(IMAGE_SIZE) + phase) // period
    if style == "noisy":
        picture += rng.normal(0, _NOISE, (IMAGE_SIZE, IMAGE_SIZE, 1)).astype(np.float32)
    elif style == "striped":
        odd = band % 2 == 1
        picture[odd if horizontal else (slice(None), odd)] = other
    elif style == "checkered":
        picture[(band[:, None] + band[None, :]) % 2 == 1] = other
    return picture


def paint(
    picture: FloatArray, objects: Sequence[SceneObject], rng: np.random.Generator
) -> Image.Image:
    """Paints the objects over a background, each in its own slightly jittered colour."""
    for item in objects:
        tint = np.array(COLORS[item.color]) + rng.normal(0, _JITTER, 3)
        alpha = sprite(item.kind, item.size)[..., None]
        box = _box(item)
        picture[box] = alpha * np.clip(tint, 0, 255) + (1 - alpha) * picture[box]
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def pixel_coverage(item: SceneObject) -> FloatArray:
    """How much of each pixel [y, x] the object covers, 0 to 1."""
    covered = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    covered[_box(item)] = sprite(item.kind, item.size)
    return covered


def _box(item: SceneObject) -> tuple[slice, slice]:
    return slice(item.y, item.y + item.size), slice(item.x, item.x + item.size)
