"""Which visual token stands where, from a batch's inputs: rules are tried in order, none may guess.

1. Video tokens are told from those of images (``video_positions``).
2. Images are laid out as the user states, or by the first rule that explains every token exactly
   (``rules/order``), if possible with the processor measured (``measure/``).
3. Videos are laid out by the same rules.
4. What no rule explains is ``unplaced``; everything is written out as one table (``token_table``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from ..errors import InputError
from ..visual_tokens import VisualTokens
from .layout import Layout
from .layout_inputs import LayoutInputs, Layouts
from .measure.measured_layouts import explain_measured
from .measure.painted_images import RepeatCall
from .rules.order import explain
from .rules.video_frames import join_frames
from .token_table import rows_of, table, unplaced
from .video_positions import video_positions

_TEXT = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids", "token_type_ids")

Stated = Layout | Sequence[Sequence[Layout]]


def locate(
    inputs: Mapping[str, Tensor],
    mask: Bool[Tensor, "sample token"],
    images: Sequence[Sequence[Image | None]] | None,
    *,
    config: Any,
    processor: Any = None,
    layout: Stated | None = None,
    latents: bool = False,
    repeat_call: RepeatCall | None = None,
    frames_per_video: Sequence[Sequence[int]] | None = None,
) -> VisualTokens:
    """Find the place of every visual token; ``unplaced`` are those whose layout no rule explains.

    ``images`` are those of every sample, None for any that is not at hand, or None when not even
    their number is known. ``repeat_call`` runs the processor call that made ``inputs`` with other
    images of the same sizes: without it boxes are NaN, and tiles must be told from marker tokens.
    ``frames_per_video`` is for models that write the frames of a video as if they were images.

    Raises:
        InputError: The number of images does not fit the placeholders, or the stated layout does
            not fit the number of tokens.
    """
    ids, visual = inputs["input_ids"].cpu().numpy(), mask.cpu().numpy()
    in_videos = video_positions(inputs, mask, config).cpu().numpy()
    of_images = LayoutInputs(
        ids,
        _positions(visual & ~in_videos),
        None if images is None else tuple(map(len, images)),
        dict(inputs),
        config,
        _text_of(processor),
        are_latents=latents,
    )
    frames_as_images = frames_per_video if not in_videos.any() else None
    if frames_as_images is not None and any(frames_as_images):
        of_images = replace(of_images, counts=None)
        repeat_call = None
    _check_presence(of_images)
    layouts: Layouts | None = None
    if layout is not None:
        layouts = _stated(of_images, layout)
    elif repeat_call is not None and images is not None and of_images.total:
        layouts = explain_measured(of_images, images, repeat_call, processor)
    layouts = layouts or explain(of_images) or unplaced(of_images)
    if frames_as_images is not None and of_images.counts is None:
        layouts = join_frames(layouts, frames_as_images)
    sizes = None
    if images is not None and of_images.counts is not None:
        sizes = [[None if image is None else image.size for image in row] for row in images]
    rows = rows_of(of_images.positions, layouts, sizes)
    if in_videos.any():
        of_videos = replace(
            of_images, positions=_positions(visual & in_videos), counts=None, are_videos=True
        )
        _check_presence(of_videos)
        videos = explain(of_videos) or unplaced(of_videos)
        rows += rows_of(of_videos.positions, videos, None, shift=[len(row) for row in layouts])
    return table(rows)


def _stated(inputs: LayoutInputs, layout: Stated) -> Layouts:
    if isinstance(layout, Layout):
        odd = [len(p) for p in inputs.positions if len(p) % len(layout)]
        if odd:
            raise InputError(
                f"the layout has {len(layout)} tokens per image, and a sample has {odd[0]} "
                "visual tokens"
            )
        layouts = [layout] * (inputs.total // len(layout))
    else:
        layouts = [one for row in layout for one in row]
    shared = inputs.per_sample(layouts)
    if shared is None:
        raise InputError(
            f"layouts of {[len(one) for one in layouts]} tokens do not add up to the samples' "
            f"{[len(p) for p in inputs.positions]} visual tokens"
            + ("" if inputs.counts is None else f" for {list(inputs.counts)} images")
        )
    return shared


def _check_presence(inputs: LayoutInputs) -> None:
    """Refuse visual positions without images, and images without visual positions."""
    for sample, count in enumerate(inputs.counts or ()):
        found = len(inputs.positions[sample])
        if bool(found) != bool(count):
            raise InputError(f"sample {sample}: {found} visual positions for {count} images")
    if inputs.total and all(name in _TEXT for name in inputs.tensors):
        raise InputError(
            f"input_ids has {inputs.total} visual positions and there are no pixel_values"
        )


def _positions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    return tuple(np.flatnonzero(row) for row in mask)


def _text_of(processor: Any) -> Any:
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return None
    return lru_cache(maxsize=None)(lambda i: str(tokenizer.convert_ids_to_tokens(i)))
