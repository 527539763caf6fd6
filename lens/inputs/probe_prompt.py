"""One small image and a short prompt, to verify a model's anatomy with.

An anatomy verified on text alone says nothing about how the image enters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError, Unsupported
from .encoder import Encoder

# (width, height): not square, so that a transposed grid shows; no side below the patches of models
# that refuse small images.
SIZE = (112, 84)
PROMPT = "what is this ?"


def probe_image() -> Image.Image:
    """Coarse noise: every cell of it looks different."""
    cells = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(SIZE, Image.Resampling.BICUBIC)


def probe_inputs(encoder: Encoder) -> dict[str, Tensor] | None:
    """Tensors of one image and a prompt, or None if this processor cannot make them by itself.

    None is not the end: the first batch with an image, which the user may prompt as the model
    wants it, serves as well.
    """
    for with_placeholder in (False, True):
        try:
            prompt = f"{encoder.placeholder} {PROMPT}" if with_placeholder else PROMPT
            inputs = encoder.tensors(probe_image(), prompt).inputs
        except (InputError, Unsupported):
            continue
        # A forward that takes no image tensor belongs to a text-only model.
        return inputs if has_image(inputs) else None
    return None


def has_image(inputs: Mapping[str, Tensor]) -> bool:
    """Whether there are image or video tensors: the only inputs that are real numbers."""
    return any(tensor.is_floating_point() for tensor in inputs.values())
