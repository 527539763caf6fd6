"""From a cell of the visual grid back to pixels of the image the user gave.

Image processors resize, pad and crop before the vision tower sees anything, so cell (0, 0) is
not the corner of the original image. This follows the processor's own settings backwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Unsupported


@dataclass(frozen=True)
class Preparation:
    """How one image became the canvas that the vision tower cuts into patches.

    A point ``p`` of the original image lands at ``p * scale + offset`` on a canvas of
    ``canvas`` pixels; all pairs are (x, y).
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    canvas: tuple[float, float]

    def boxes(self, rows: int, cols: int, size: tuple[int, int]) -> NDArray[np.float64]:
        """Pixel boxes of a raster grid in the original image of ``size`` (width, height).

        Returns:
            ``[rows * cols, 4]``: left, top, right, bottom, row-major, clipped to the image.
        """
        x = (np.linspace(0, self.canvas[0], cols + 1) - self.offset[0]) / self.scale[0]
        y = (np.linspace(0, self.canvas[1], rows + 1) - self.offset[1]) / self.scale[1]
        x, y = x.clip(0, size[0]), y.clip(0, size[1])
        top, left = np.meshgrid(y[:-1], x[:-1], indexing="ij")
        bottom, right = np.meshgrid(y[1:], x[1:], indexing="ij")
        return np.stack([left, top, right, bottom], axis=-1).reshape(-1, 4)


def preparation(image_processor: Any, size: tuple[int, int]) -> Preparation:
    """Follow an image processor's pad, resize and centre-crop for an image of (width, height)."""
    width, height = float(size[0]), float(size[1])
    scale_x = scale_y = 1.0
    offset_x = offset_y = 0.0
    if getattr(image_processor, "do_pad", False):
        side = max(width, height)
        offset_x, offset_y = (side - width) / 2, (side - height) / 2
        width = height = side
    if getattr(image_processor, "do_resize", False):
        new_width, new_height = _resized(_sides(image_processor.size), width, height)
        scale_x, scale_y = new_width / width, new_height / height
        offset_x, offset_y = offset_x * scale_x, offset_y * scale_y
        width, height = new_width, new_height
    if getattr(image_processor, "do_center_crop", False):
        crop = _sides(image_processor.crop_size)
        crop_height, crop_width = crop["height"], crop["width"]
        offset_x -= (width - crop_width) // 2
        offset_y -= (height - crop_height) // 2
        width, height = float(crop_width), float(crop_height)
    return Preparation((scale_x, scale_y), (offset_x, offset_y), (width, height))


def _sides(size: Any) -> dict[str, int]:
    """The set entries of a processor's size setting, which may be a dict or an object."""
    items = dict(size) if not isinstance(size, dict) else size
    return {key: int(value) for key, value in items.items() if value is not None}


def _resized(size: dict[str, int], width: float, height: float) -> tuple[float, float]:
    if {"height", "width"} <= size.keys():
        return float(size["width"]), float(size["height"])
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        factor = short / min(width, height)
        # The processors keep the short edge exact and truncate the long one.
        return (
            float(short if width <= height else int(width * factor)),
            float(short if height <= width else int(height * factor)),
        )
    raise Unsupported(f"the image processor resizes by {sorted(size)}, which is not understood yet")


def square_side(count: int) -> int | None:
    """Side of a square grid of ``count`` cells, or None when ``count`` is not a square."""
    side = math.isqrt(count)
    return side if side * side == count else None
