"""Videos whose frames are pictures of one size: a raster per frame, and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..layout import Block, Layout
from ..layout_inputs import LayoutInputs, Layouts
from ..measure.pixel_tensor import PixelTensor
from .tiles import raster


def explain(inputs: LayoutInputs) -> Layouts | None:
    """Pictures ``[video, frame, channel, height, width]``, equally many tokens each.

    A frame may keep the class token of the tower, which stands first; a video may end in one
    newline token.
    """
    pixels = PixelTensor.of(inputs)
    if not inputs.are_videos or pixels is None or not pixels.holds_pictures:
        return None
    if pixels.tensor.ndim != 5:
        return None
    videos, frames, _, height, width = pixels.tensor.shape
    patch = inputs.setting("patch_size")
    patch = patch if isinstance(patch, int) else 1
    for after in (0, 1):
        each, rest = divmod(inputs.total - after * videos, videos * frames)
        if rest:
            continue
        for first in (0, 1):
            grid = raster(each - first, height, width)
            # One more than the tower has patches: nothing else than its class token.
            if grid is None or (first and grid != (height // patch, width // patch)):
                continue
            blocks = []
            for time in range(frames):
                if first:
                    blocks.append(Block(1, 1, time=time, tile=0, kind="latent"))
                last = after if time == frames - 1 else 0
                blocks.append(Block(*grid, time=time, tile=0, after=last))
            layouts = inputs.per_sample([Layout(tuple(blocks))] * videos)
            if layouts is not None:
                return layouts
    return None


def join_frames(explained: Layouts, frames_per_video: Sequence[Sequence[int]]) -> Layouts:
    """Frames that were read as images, joined to the videos that they are.

    A sample stays as it is where its frames per video are not all its layouts, for then which ones
    are frames is not known.
    """
    joined: list[Sequence[Layout]] = []
    for layouts, numbers in zip(explained, frames_per_video, strict=True):
        if not numbers or sum(numbers) != len(layouts):
            joined.append(layouts)
            continue
        remaining = iter(layouts)
        joined.append(
            [
                Layout(
                    tuple(
                        replace(block, time=time, tile=tile)
                        for time in range(number)
                        for tile, block in enumerate(next(remaining).blocks)
                    )
                )
                for number in numbers
            ]
        )
    return joined
