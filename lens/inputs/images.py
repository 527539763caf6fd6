"""Images and videos as the user gives them, made RGB and sorted by prompt.

One flat list can mean several things. Three images with three prompts are one each, three images
with one prompt are that prompt's three, three frames are one video. The rules are written here
once, and what fits none of them is refused instead of guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

ImageLike = Image.Image | str | Path | NDArray[np.uint8]
Images = ImageLike | Sequence[ImageLike] | Sequence[Sequence[ImageLike]]
VideoLike = NDArray[np.uint8] | Sequence[ImageLike]
Videos = VideoLike | Sequence[VideoLike] | Sequence[Sequence[VideoLike]]

# Modes whose numbers have no agreed range: converting them would clip silently.
_UNBOUNDED_MODES = ("I", "F")


def read_image(image: ImageLike) -> Image.Image:
    """One RGB image from a PIL image, a file or a ``[height, width, 3]`` uint8 array.

    Raises:
        InputError: The file is missing or is no readable image, or the array has another form.
    """
    if isinstance(image, Image.Image):
        return _rgb(image, "the image")
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                # Cameras store the turn in metadata: what the user sees is the turned image.
                return _rgb(ImageOps.exif_transpose(opened), repr(str(image)))
        except FileNotFoundError:
            raise InputError(f"no image file {str(image)!r}") from None
        except InputError:
            raise
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"{str(image)!r} cannot be read as an image ({error}); is it complete?"
            ) from None
    array = np.asarray(image)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        return Image.fromarray(array)
    shape = getattr(image, "shape", None)
    raise InputError(
        f"an image is a PIL image, a file name or a uint8 array [height, width, 3], not "
        f"{type(image).__name__}{'' if shape is None else f' {tuple(shape)}'}"
    )


def arrange_images(images: Images | None, n_prompts: int) -> list[list[Image.Image]]:
    """The images of each prompt, from one image, one per prompt, or several per prompt.

    Args:
        images: None for text alone; one image for every prompt; one per prompt (with a single
            prompt: all of them are its own); or a list of images for each prompt.
        n_prompts: Number of prompts.

    Raises:
        InputError: The number of images does not fit the number of prompts.
    """
    if images is None:
        return [[] for _ in range(n_prompts)]
    if isinstance(images, str) or not isinstance(images, Sequence):
        shared = read_image(images)
        return [[shared] for _ in range(n_prompts)]
    if not images:
        raise InputError("no image was given: for text alone, pass images=None")
    if any(isinstance(item, list | tuple) for item in images):
        if not all(isinstance(item, list | tuple) for item in images):
            raise InputError("either every prompt gets a list of images or none does")
        nested = [[read_image(image) for image in item] for item in images]  # type: ignore[union-attr]
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

    Args:
        videos: None; one video (an array or a list of its frames) for every prompt; a list with
            one video per prompt (with a single prompt: all are its own); or a list of videos
            for each prompt.
        n_prompts: Number of prompts.

    Raises:
        InputError: Frames that differ in size, or a number of videos that does not fit.
    """
    if videos is None:
        return [[] for _ in range(n_prompts)]
    depth = _depth(videos)
    if depth == 1:
        shared = _read_video(videos)
        return [[shared] for _ in range(n_prompts)]
    items: list[Any] = list(videos)
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


def _depth(videos: Any) -> int:
    """How many levels of lists stand above a single frame: 1 is one video."""
    if isinstance(videos, np.ndarray) and videos.ndim in (3, 4):
        return int(videos.ndim) - 3
    if isinstance(videos, Image.Image | str | Path):
        return 0
    if not isinstance(videos, Sequence) or not videos:
        raise InputError(
            "a video is a list of its frames or a uint8 array [frame, height, width, 3], not "
            f"{type(videos).__name__}"
        )
    depths = [
        _depth(item) if not (isinstance(item, list) and not item) else None for item in videos
    ]
    known = {depth for depth in depths if depth is not None}
    if len(known) != 1 or known > {0, 1, 2}:
        raise InputError(
            "videos: give one video, a list with one per prompt, or a list of lists of videos"
        )
    return known.pop() + 1


def _read_video(video: Any) -> NDArray[np.uint8]:
    frames = [np.asarray(read_image(frame)) for frame in video]
    if len(sizes := {frame.shape for frame in frames}) > 1:
        raise InputError(f"the frames of one video differ in size: {sorted(sizes)}")
    return np.stack(frames)


def _rgb(image: Image.Image, what: str) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise InputError(f"{what} has no pixels ({image.width}x{image.height})")
    if image.mode.startswith("I;16"):
        # Pillow would clip every value above 255 to white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in _UNBOUNDED_MODES:
        raise InputError(
            f"{what} has pixels of mode {image.mode!r}, whose range is not known: convert it to "
            "8 bits first"
        )
    return image.convert("RGB")
