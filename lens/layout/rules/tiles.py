"""Pictures of one size, each a raster of equally many tokens: whole images, tiles, thumbnails.

All tiles of all images come one behind another, and nothing in the inputs need say which belong
together. Where the images are at hand, what each picture shows was measured; otherwise the
text between the stretches of visual tokens must tell.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..layout import Block
from ..layout_inputs import LayoutInputs, Layouts
from ..measure.edge_fit import raster_edges
from ..measure.pixel_tensor import PixelTensor
from ..tiles_of_images import layouts_of_tiles


def explain(inputs: LayoutInputs) -> Layouts | None:
    """Every picture has the same number of tokens."""
    pixels = PixelTensor.of(inputs)
    if pixels is None or not pixels.holds_pictures or inputs.are_videos:
        return None
    pictures = pixels.real_pictures()
    if not pictures or inputs.total % len(pictures):
        return None
    each = inputs.total // len(pictures)
    block = _block(inputs, each, *pixels.tensor.shape[-2:])
    if block is None:
        return None
    covered = _covered(inputs, block, *pixels.tensor.shape[-2:])
    blocks = []
    for index in pictures:
        edges = None
        if block.kind == "patch":
            edges = raster_edges(pixels.origins, index, block.rows, block.cols, covered)
        blocks.append(replace(block, edges=edges))
    layouts = layouts_of_tiles(inputs, blocks, pixels.owners())
    return None if layouts is None else inputs.per_sample(layouts)


def raster(count: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of ``count`` square cells over a picture, or None when there are none."""
    rows = round(math.sqrt(count * height / width))
    if rows and count % rows == 0 and rows * width == count // rows * height:
        return rows, count // rows
    return None


def _block(inputs: LayoutInputs, each: int, height: int, width: int) -> Block | None:
    if inputs.are_latents:
        return Block(1, each, kind="latent")
    grid = raster(each, height, width)
    if grid is not None:
        return Block(*grid)
    # The class token that some towers put first is kept only where the configuration says so.
    if inputs.setting("vision_feature_select_strategy") == "full":
        grid = raster(each - 1, height, width)
        if grid is not None:
            return Block(*grid, before=1)
    return None


def _covered(inputs: LayoutInputs, block: Block, height: int, width: int) -> tuple[int, int]:
    """The part of a picture that is cut into whole patches; towers drop what is left over."""
    patch = inputs.setting("patch_size")
    if not isinstance(patch, int):
        return height, width
    rows, cols = height // patch, width // patch
    if rows % block.rows or cols % block.cols:
        return height, width
    return rows * patch, cols * patch


def pictures_needed_and_given(inputs: LayoutInputs) -> tuple[float, int] | None:
    """How many pictures the visual positions are, and how many there are, where that is certain.

    It is certain where the configuration selects patches, each of which becomes one token.
    """
    pixels, patch = PixelTensor.of(inputs), inputs.setting("patch_size")
    if inputs.setting("vision_feature_select_strategy") != "default" or inputs.are_latents:
        return None
    if pixels is None or not pixels.holds_pictures or pixels.tensor.ndim != 4:
        return None
    if not isinstance(patch, int):
        return None
    height, width = pixels.tensor.shape[-2:]
    number = inputs.total / ((height // patch) * (width // patch))
    return (number, len(pixels.tensor)) if number.is_integer() else None
