"""Videos whose frames are pictures of one size: a raster per frame, and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..layout import Block, Layout
from ..layout_inputs import Evidence, Explanation
from ..measure.pixel_tensor import Pixels
from .tiles import raster


def explain(evidence: Evidence) -> Explanation | None:
    """Pictures ``[video, frame, channel, height, width]``, equally many tokens each.

    A frame may keep the class token of the tower, which stands first; a video may end in one
    newline token.
    """
    pixels = Pixels.of(evidence)
    if pixels is None or not evidence.video or not pixels.pictures or pixels.tensor.ndim != 5:
        return None
    videos, frames, _, height, width = pixels.tensor.shape
    patch = evidence.setting("patch_size")
    patch = patch if isinstance(patch, int) else 1
    for after in (0, 1):
        each, rest = divmod(evidence.total - after * videos, videos * frames)
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
            dealt = evidence.deal([Layout(tuple(blocks))] * videos)
            if dealt is not None:
                return dealt
    return None


def join_frames(explained: Explanation, films: Sequence[Sequence[int]]) -> Explanation:
    """Frames that were read as images, joined to the videos that they are.

    Args:
        explained: Per sample the layouts of its images and frames.
        films: Per sample the number of frames of each of its videos. A sample is left as it is
            where these are not all its layouts, for then which ones are frames is not known.
    """
    joined: list[Sequence[Layout]] = []
    for layouts, numbers in zip(explained, films, strict=True):
        if not numbers or sum(numbers) != len(layouts):
            joined.append(layouts)
            continue
        left = iter(layouts)
        joined.append(
            [
                Layout(
                    tuple(
                        replace(block, time=time, tile=tile)
                        for time in range(number)
                        for tile, block in enumerate(next(left).blocks)
                    )
                )
                for number in numbers
            ]
        )
    return joined
