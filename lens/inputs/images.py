"""Images and videos as the user gives them, sorted by prompt.

One flat list can mean several things. Three images with three prompts are one each, three images
with one prompt are that prompt's three, three frames are one video. The rules are written here
once, and what fits none of them is refused instead of guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from .prompts import shorten
from .read_image import ImageLike, frames_of, is_one_image, read_image

Images = ImageLike | Sequence[ImageLike] | Sequence[Sequence[ImageLike]]
VideoLike = ImageLike | Sequence[ImageLike]
Videos = VideoLike | Sequence[VideoLike] | Sequence[Sequence[VideoLike]]

_NO_VIDEO = (
    "a video is a list of its frames, a uint8 array [frame, height, width, 3] or a moving picture "
    "(GIF, APNG, WebP), not {}; take the frames out of any other file first"
)


def refuse_ambiguous(kind: str, given: Any, prompt: str, mentioned: int) -> None:
    """Refuse several pictures in a row with one text that does not say how many are its own.

    ``mentioned`` are the placeholders of that ``kind``, ``image`` or ``video``, in the prompt.
    """
    flat = isinstance(given, Sequence) and not is_one_image(given) and len(given) > 1
    several = flat and not any(isinstance(one, list | tuple) for one in given)
    if kind == "video":
        depth = 0 if given is None else _depth(given)
        several = depth == 2 and len(given) > 1
    if several and not mentioned:
        raise InputError(
            f"{len(given)} {kind}s and one text {shorten(prompt, 30)!r} can be one sample or "
            f"{len(given)}: encode([{kind}s], prompt) is one sample with all of them, "
            f"encode({kind}s, [prompt] * {len(given)}) one sample for each"
        )


def arrange_images(images: Images | None, n_prompts: int) -> list[list[Image.Image]]:
    """The images of each prompt, from one image, one per prompt, or several per prompt.

    One image goes to every prompt; a list is one per prompt (all its own, where a single prompt has
    their placeholders or stands in a list), or a list for each prompt. InputError where the numbers
    do not fit.
    """
    if images is None:
        return [[] for _ in range(n_prompts)]
    if is_one_image(images) or not isinstance(images, Sequence):
        shared = read_image(images)  # type: ignore[arg-type]
        return [[shared] for _ in range(n_prompts)]
    if not images:
        raise InputError("no image was given: for text alone, pass images=None")
    if any(isinstance(item, list | tuple) for item in images):
        if not all(isinstance(item, list | tuple) for item in images):
            raise InputError("either every prompt gets a list of images or none does")
        nested = [[read_image(image) for image in item] for item in images]  # type: ignore[union-attr, arg-type]
    elif n_prompts == 1:
        nested = [[read_image(image) for image in images]]  # type: ignore[arg-type]
    else:
        nested = [[read_image(image)] for image in images]  # type: ignore[arg-type]
    if len(nested) != n_prompts:
        raise InputError(
            f"{len(nested)} image entries for {n_prompts} prompts: give one image (or list of "
            "images) per prompt, or a single image for all"
        )
    return nested


def arrange_videos(videos: Videos | None, n_prompts: int) -> list[list[NDArray[np.uint8]]]:
    """The videos of each prompt, every one ``[frame, height, width, 3]``.

    One video (an array or a list of its frames) goes to every prompt; a list is one per prompt
    (with a single prompt: all its own, as for images), or a list for each prompt.
    """
    if videos is None:
        return [[] for _ in range(n_prompts)]
    depth = _depth(videos)
    if depth == 0:
        frames = None if isinstance(videos, np.ndarray) else frames_of(videos)  # type: ignore[arg-type]
        if frames is None:
            raise InputError(_NO_VIDEO.format("a single image"))
        videos, depth = frames, 1
    if depth == 1:
        shared = _read_video(videos)
        return [[shared] for _ in range(n_prompts)]
    items: list[Any] = list(videos)  # type: ignore[arg-type]
    if depth == 2:
        read = [_read_video(video) for video in items]
        nested = [read] if n_prompts == 1 else [[video] for video in read]
    else:
        nested = [[_read_video(video) for video in item] for item in items]
    if len(nested) != n_prompts:
        raise InputError(
            f"{len(nested)} video entries for {n_prompts} prompts: give one video (or list of "
            "videos) per prompt, or a single video for all"
        )
    return nested


def _depth(videos: Any, levels: int = 3) -> int:
    """How many levels of lists stand above a single frame: 1 is one video."""
    if isinstance(videos, np.ndarray) and videos.ndim in (3, 4):
        return int(videos.ndim) - 3
    if is_one_image(videos):
        return 0
    if not isinstance(videos, Sequence) or not videos:
        raise InputError(_NO_VIDEO.format(type(videos).__name__))
    given = [one for one in videos if not (isinstance(one, list) and not one)]
    depths = {_depth(one, levels - 1) for one in given} if levels else set()
    if len(depths) != 1 or max(depths) >= levels:
        raise InputError(
            "videos: give one video, a list with one per prompt, or a list of lists of videos"
        )
    return depths.pop() + 1


def _read_video(video: Any) -> NDArray[np.uint8]:
    frames = [np.asarray(_still(frame)) for frame in video]
    if not frames:
        raise InputError("a video without frames: leave it out, or give it at least one")
    if len(sizes := {frame.shape for frame in frames}) > 1:
        raise InputError(f"the frames of one video differ in size: {sorted(sizes)}")
    return np.stack(frames)


def _still(frame: Any) -> Image.Image:
    if not isinstance(frame, np.ndarray) and is_one_image(frame) and frames_of(frame) is not None:
        raise InputError(
            "a frame of a video is itself a moving picture: give its frames one by one"
        )
    return read_image(frame)
