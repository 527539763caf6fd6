"""Which visual tokens are those of videos.

An id of their own need not tell: some models write the frames of a video under the id of images,
and then only the type ids, or the tensors that are there, say what a position holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

_VIDEO = 2  # in mm_token_type_ids: 0 text, 1 image, 2 video


def video_positions(
    inputs: Mapping[str, Tensor], mask: Bool[Tensor, "sample token"], config: Any
) -> Bool[Tensor, "sample token"]:
    """The visual positions that belong to videos.

    Frames that nothing in the inputs marks as such are counted among the images.
    """
    ids, types = inputs["input_ids"], inputs.get("mm_token_type_ids")
    video_id = getattr(config, "video_token_id", None)
    shared = video_id is not None and video_id == getattr(config, "image_token_id", None)
    if types is not None and not shared:
        typed = mask & (types == _VIDEO)
        if bool(typed.any()):
            return typed
    if video_id is None:
        return torch.zeros_like(mask)
    if shared:  # only the tensors tell, and only if there is but one kind of them
        videos = any("pixel_values_videos" in name for name in inputs)
        images = any(name.startswith("pixel_values") and "video" not in name for name in inputs)
        return mask if videos and not images else torch.zeros_like(mask)
    in_videos: Tensor = mask & (ids == video_id)
    return in_videos
