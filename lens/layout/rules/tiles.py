"""Pictures of one size, each a raster of equally many tokens: whole images, tiles, thumbnails.

All tiles of all images come as one pile of pictures, and nothing in the inputs need say which
belong together. Where the images are at hand, what each picture shows was measured; otherwise the
text between the stretches of visual tokens must tell.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..layout import Block
from ..layout_inputs import Evidence, Explanation
from ..measure.painted_images import raster_edges
from ..measure.pixel_tensor import Pixels
from .tile_stacks import layouts_of_tiles


def explain(evidence: Evidence) -> Explanation | None:
    """Every picture has the same number of tokens."""
    pixels = Pixels.of(evidence)
    if pixels is None or not pixels.pictures or evidence.video:
        return None
    units = pixels.units()
    if not units or evidence.total % len(units):
        return None
    each = evidence.total // len(units)
    block = _block(evidence, each, *pixels.tensor.shape[-2:])
    if block is None:
        return None
    seen = _seen(evidence, block, *pixels.tensor.shape[-2:])
    blocks = []
    for index in units:
        edges = None
        if block.kind == "patch":
            edges = raster_edges(pixels.view, index, block.rows, block.cols, seen)
        blocks.append(replace(block, edges=edges))
    layouts = layouts_of_tiles(evidence, blocks, pixels.owners())
    return None if layouts is None else evidence.deal(layouts)


def raster(count: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of ``count`` square cells over a picture, or None when there are none."""
    rows = round(math.sqrt(count * height / width))
    if rows and count % rows == 0 and rows * width == count // rows * height:
        return rows, count // rows
    return None


def _block(evidence: Evidence, each: int, height: int, width: int) -> Block | None:
    if evidence.latents:
        return Block(1, each, kind="latent")
    grid = raster(each, height, width)
    if grid is not None:
        return Block(*grid)
    # The class token that some towers put first is kept only where the configuration says so.
    if evidence.setting("vision_feature_select_strategy") == "full":
        grid = raster(each - 1, height, width)
        if grid is not None:
            return Block(*grid, before=1)
    return None


def _seen(evidence: Evidence, block: Block, height: int, width: int) -> tuple[int, int]:
    """The part of a picture that is cut into whole patches; towers drop what is left over."""
    patch = evidence.setting("patch_size")
    if not isinstance(patch, int):
        return height, width
    rows, cols = height // patch, width // patch
    if rows % block.rows or cols % block.cols:
        return height, width
    return rows * patch, cols * patch


def pictures(evidence: Evidence) -> tuple[float, int] | None:
    """How many pictures the visual positions are, and how many there are, where that is plain.

    It is plain where the configuration selects patches, each of which becomes one token.
    """
    pixels, patch = Pixels.of(evidence), evidence.setting("patch_size")
    if evidence.setting("vision_feature_select_strategy") != "default" or evidence.latents:
        return None
    if pixels is None or not pixels.pictures or pixels.tensor.ndim != 4:
        return None
    if not isinstance(patch, int):
        return None
    height, width = pixels.tensor.shape[-2:]
    number = evidence.total / ((height // patch) * (width // patch))
    return (number, len(pixels.tensor)) if number.is_integer() else None
