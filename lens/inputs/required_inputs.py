"""Which inputs a model cannot do without, measured on the model.

Without ``token_type_ids`` or ``mm_token_type_ids`` many models run all the same, with a causal mask
inside the image or with one-dimensional positions, and only the numbers are wrong. Whether an input
matters differs from model to model even where the forward takes it, so it is measured on the model
at hand: a missing input is refused when leaving it out changes anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, Unsupported
from ..tolerances import IDLE_INPUT
from .prompts import shorten
from .rows_per_sample import PICTURE_MASK, is_picture
from .tensor_checks import TYPE_IDS, names_of_inputs

Forward = Callable[[Mapping[str, Tensor]], Tensor]
CompleteInputs = Callable[[int, int], Mapping[str, Tensor]]

_GRID = re.compile(r"image.*grid|spatial_shapes|image_position_ids")
_RECIPES = {
    "mm_token_type_ids": "1 at image tokens, 2 at video tokens, 0 elsewhere, [sample, token]",
    "token_type_ids": "as the processor returns it, [sample, token]",
    "moe_mm_token_type_ids": "as mm_token_type_ids, the start and end tokens of pictures included",
}


@dataclass
class RequiredInputs:
    """Which inputs a model cannot do without, measured once for each form of batch."""

    accepts: frozenset[str] | None = None  # arguments of the model's forward; None if not known
    # Logits ``[sample, token, vocab]``, leaving the model as it was; None if it must not be run
    forward: Forward | None = None
    # Complete tensors of so many prompts and pictures, from the processor; None without one
    make_complete: CompleteInputs | None = None
    _measured: dict[tuple[Any, ...], str | None] = field(default_factory=dict, repr=False)
    _text_runs: bool = field(default=False, repr=False)
    _runs: set[frozenset[str]] = field(default_factory=set, repr=False)

    def check(
        self, inputs: Mapping[str, Tensor], images: Tensor, videos: Tensor, n_images: int
    ) -> None:
        """Refuse a batch that lacks an input which matters; the message says how to make it."""
        if not bool(images.any() | videos.any()):
            self.check_text(inputs)
            return
        reasons: dict[str, str] = {}
        if self.make_complete is not None:
            shape = (min(len(images), 2), min(max(n_images, 1), 2))
            reasons = self._against_complete(inputs, shape, bool(images.any()))
        else:
            reasons = self._by_trying(inputs, images, videos)
        if bool(videos.any()):
            reasons |= self._for_videos(inputs)
        for name, reason in reasons.items():
            recipe = _RECIPES.get(name, "it comes with the pixels from the model's processor")
            raise InputError(f"the batch lacks {name!r}: {reason}; pass it ({recipe})")

    def check_text(self, inputs: Mapping[str, Tensor]) -> None:
        """Refuse text alone where the model's forward cannot do without an image."""
        if self.forward is None or self._text_runs:
            return
        try:
            self.forward(inputs)
        # Any failure of the model on plain text means that it wants an image.
        except Exception as error:
            raise InputError(
                f"this model takes no text alone ({_said(error)}): give every prompt an image"
            ) from error
        self._text_runs = True

    def _against_complete(
        self, inputs: Mapping[str, Tensor], shape: tuple[int, int], images: bool
    ) -> dict[str, str]:
        """What the processor makes, the batch lacks, and the model needs."""
        assert self.make_complete is not None
        try:
            complete = self.make_complete(*shape)
        except (InputError, Unsupported):
            # Not every model takes several images in one prompt.
            shape = (shape[0], 1)
            complete = self.make_complete(*shape)
        others = any(is_picture(n, tensor) and n not in complete for n, tensor in inputs.items())
        reasons = {}
        for name in complete:
            if name in inputs or (not images and name not in TYPE_IDS):
                continue
            if others and is_picture(name, complete[name]):
                continue  # given under another name that the forward takes as well
            if (*shape, name) not in self._measured:
                self._measured[*shape, name] = self._without(name, complete)
            if reason := self._measured[*shape, name]:
                reasons[name] = reason
        return reasons

    def _without(self, name: str, complete: Mapping[str, Tensor]) -> str | None:
        """What goes wrong without one input; None when nothing does."""
        if self.forward is None:
            return "this model's processor makes it, and without it results may differ"
        rest = {key: value for key, value in complete.items() if key != name}
        try:
            found = self.forward(rest)
        # Any failure of the model means that it needs the input.
        except Exception as error:
            return f"without it this model fails ({type(error).__name__})"
        return _difference(found, self.forward(complete), complete["attention_mask"])

    def _by_trying(
        self, inputs: Mapping[str, Tensor], images: Tensor, videos: Tensor
    ) -> dict[str, str]:
        """Without a processor: the batch itself with and without what is missing."""
        accepts = self.accepts or frozenset()
        absent = [name for name in TYPE_IDS if name in accepts and name not in inputs]
        masks = [n for n in sorted(accepts) if PICTURE_MASK.search(n) and n not in inputs]
        reasons = dict.fromkeys(masks, "without it padding between images counts as image")
        if self.forward is None:
            grids = [n for n in sorted(accepts) if _GRID.search(n) and n not in inputs]
            reasons |= dict.fromkeys(grids, "it says how the image is cut")
            return reasons | dict.fromkeys(absent, "without it results may differ silently")
        if not absent:
            self._try(inputs)
            return reasons
        try:
            plain = self.forward(inputs)
        # Any failure of the model is about these inputs, and a missing one is the likeliest.
        except Exception as error:
            return reasons | dict.fromkeys(
                absent, f"the model fails on this batch ({_said(error)})"
            )
        marked = images.long() + 2 * videos.long()
        for name in absent:
            for candidate in (marked, torch.zeros_like(marked)):
                other = self.forward({**inputs, name: candidate.to(inputs["input_ids"].device)})
                if reason := _difference(plain, other, inputs["attention_mask"]):
                    reasons[name] = reason
        return reasons

    def _for_videos(self, inputs: Mapping[str, Tensor]) -> dict[str, str]:
        wanted = [n for n in sorted(self.accepts or ()) if "video" in n and "grid" in n]
        if lacking := [name for name in wanted if name not in inputs]:
            return dict.fromkeys(lacking, "it says how the frames are cut")
        self._try(inputs)
        return {}

    def _try(self, inputs: Mapping[str, Tensor]) -> None:
        """Run the model once on inputs of these names."""
        names = frozenset(inputs)
        if self.forward is None or names in self._runs:
            return
        try:
            self.forward(inputs)
        # Any failure of the model is about these inputs, and a missing one is the likeliest.
        except Exception as error:
            lacking = ", ".join(
                n for n in sorted(names_of_inputs(self.accepts or ())) if n not in inputs
            )
            raise InputError(
                f"the model fails on this batch ({_said(error)}); it also takes {lacking}: pass "
                "everything that its processor makes"
            ) from error
        self._runs.add(names)


def _difference(found: Tensor, expected: Tensor, mask: Tensor) -> str | None:
    """How logits differ at real tokens, in words; None where they are the same."""
    if found.shape != expected.shape:
        return "without it this model returns logits of another shape"
    real = mask.bool().to(found.device)
    found, expected = found[real].float(), expected[real].float()
    counted = expected > -1e30  # masked logits are as low as they can be
    apart = float((found - expected)[counted].abs().max())
    if apart <= IDLE_INPUT * float(expected[counted].abs().max()):
        return None
    return f"without it this model computes other logits (by up to {apart:.2g})"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(str(error))}"
