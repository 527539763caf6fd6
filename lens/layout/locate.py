"""From inputs to the table of visual tokens: rules are tried in order, and none may guess."""

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
from .layout_inputs import Evidence, Explanation
from .measure.measured_layouts import explain_measured
from .measure.painted_images import Again
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
    again: Again | None = None,
    films: Sequence[Sequence[int]] | None = None,
) -> VisualTokens:
    """Find the place of every visual token.

    Args:
        inputs: The model's inputs: ``input_ids`` and all image and video tensors.
        mask: Where the visual tokens are.
        images: The images of every sample, None for those that are not at hand; or None when not
            even their number is known.
        config: The configuration of the model.
        processor: The model's processor, for the text of marker tokens.
        layout: How the tokens of an image follow one another, where the user knows it: one for
            all images, or one per image of every sample.
        latents: Whether the visual tokens are learned queries, which look nowhere in particular.
        again: Runs the processor call that made ``inputs`` with other images of the same sizes.
            Without it boxes are NaN, and the tiles of an image must be told from marker tokens.
        films: Per sample the number of frames of each of its videos, where that is known: some
            models write frames as if they were images.

    Returns:
        One row per visual token. Tokens whose layout no rule explains are ``unplaced``.

    Raises:
        InputError: The number of images does not fit the placeholders, or the stated layout does
            not fit the number of tokens.
    """
    ids, visual = inputs["input_ids"].cpu().numpy(), mask.cpu().numpy()
    moving = video_positions(inputs, mask, config).cpu().numpy()
    still = Evidence(
        ids,
        _positions(visual & ~moving),
        None if images is None else tuple(map(len, images)),
        dict(inputs),
        config,
        _text_of(processor),
        latents=latents,
    )
    if films is not None and any(films) and not moving.any():
        still = replace(still, counts=None)
        again = None
    _check_presence(still)
    explained: Explanation | None = None
    if layout is not None:
        explained = _stated(still, layout)
    elif again is not None and images is not None and still.total:
        explained = explain_measured(still, images, again, processor)
    explained = explained or explain(still) or unplaced(still)
    if films is not None and still.counts is None and not moving.any():
        explained = join_frames(explained, films)
    sizes = None
    if images is not None and still.counts is not None:
        sizes = [[None if image is None else image.size for image in row] for row in images]
    rows = rows_of(still.positions, explained, sizes)
    videos = replace(still, positions=_positions(visual & moving), counts=None, video=True)
    if videos.total:
        _check_presence(videos)
        frames = explain(videos) or unplaced(videos)
        rows += rows_of(videos.positions, frames, None, shift=[len(row) for row in explained])
    return table(rows)


def _stated(evidence: Evidence, layout: Stated) -> Explanation:
    if isinstance(layout, Layout):
        odd = [len(p) for p in evidence.positions if len(p) % len(layout)]
        if odd:
            raise InputError(
                f"the layout has {len(layout)} tokens per image, and a sample has {odd[0]} "
                "visual tokens"
            )
        layouts = [layout] * (evidence.total // len(layout))
    else:
        layouts = [one for row in layout for one in row]
    dealt = evidence.deal(layouts)
    if dealt is None:
        raise InputError(
            f"layouts of {[len(one) for one in layouts]} tokens do not add up to the samples' "
            f"{[len(p) for p in evidence.positions]} visual tokens"
            + ("" if evidence.counts is None else f" for {list(evidence.counts)} images")
        )
    return dealt


def _check_presence(evidence: Evidence) -> None:
    """Refuse visual positions without images, and images without visual positions."""
    for sample, count in enumerate(evidence.counts or ()):
        found = len(evidence.positions[sample])
        if bool(found) != bool(count):
            raise InputError(f"sample {sample}: {found} visual positions for {count} images")
    if evidence.total and all(name in _TEXT for name in evidence.tensors):
        raise InputError(
            f"input_ids has {evidence.total} visual positions and there are no pixel_values"
        )


def _positions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    return tuple(np.flatnonzero(row) for row in mask)


def _text_of(processor: Any) -> Any:
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return None
    return lru_cache(maxsize=None)(lambda i: str(tokenizer.convert_ids_to_tokens(i)))
