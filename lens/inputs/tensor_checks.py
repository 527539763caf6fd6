"""Whether tensors that the user made are a batch: their names, shapes, padding and pictures."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .rows_per_sample import is_picture

TYPE_IDS = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")


def check_form(inputs: Mapping[str, Any], accepts: Collection[str] | None) -> None:
    """Refuse tensors that are not a left-padded batch."""
    for name in ("input_ids", "attention_mask"):
        if name not in inputs:
            raise InputError(f"a batch needs {name!r} [sample, token]; got {sorted(inputs)}")
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name!r} is a {type(value).__name__}, not a tensor")
        if accepts is not None and name not in accepts:
            raise InputError(
                f"the model's forward takes no {name!r}: leave it out (it takes "
                f"{', '.join(sorted(names_of_inputs(accepts)))})"
            )
        if is_picture(name, value) and not bool(value.isfinite().all()):
            raise InputError(f"{name!r} holds NaN or infinite numbers")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if ids.dtype not in (torch.int32, torch.int64):
        raise InputError(f"input_ids are whole numbers (int64), not {ids.dtype}")
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise InputError(
            f"input_ids {tuple(ids.shape)} and attention_mask {tuple(mask.shape)} must both "
            "be [sample, token]"
        )
    for name in TYPE_IDS:
        if name in inputs and inputs[name].shape != ids.shape:
            raise InputError(
                f"{name} {tuple(inputs[name].shape)} must be [sample, token] like input_ids "
                f"{tuple(ids.shape)}"
            )
    real = mask.bool()
    if not bool(real.any(1).all()):
        raise InputError("attention_mask: a sample without a single token")
    if bool((real[:, :-1] & ~real[:, 1:]).any()):
        raise InputError(
            "the batch is padded on the right or inside; embedlens wants padding on the left"
        )


def check_pictures(inputs: Mapping[str, Tensor], images: Tensor, videos: Tensor) -> None:
    """Refuse visual positions without pictures, and pictures without visual positions."""
    for what, positions, named in (("image", images, False), ("video", videos, True)):
        tensors = [
            name
            for name, tensor in inputs.items()
            if is_picture(name, tensor) and ("video" in name) == named
        ]
        count = int(positions.sum())
        usual = "pixel_values_videos" if named else "pixel_values"
        if count and not tensors:
            raise InputError(
                f"input_ids has {what} placeholders ({count} positions) but there are no {usual}"
            )
        if tensors and not count:
            raise InputError(
                f"{tensors[0]} is given but input_ids has no {what} placeholder: the {what}s "
                "would go unused"
            )


def names_of_inputs(accepts: Collection[str]) -> Sequence[str]:
    """The names of inputs among a forward's arguments."""
    inputs = re.compile(r"ids$|mask$|pixel|image|patch|video|shapes|num_")
    return [n for n in accepts if inputs.search(n) and "embeds" not in n]
