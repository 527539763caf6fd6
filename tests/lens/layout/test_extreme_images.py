"""Very thin images: every place that is claimed is the painted one, or nothing is claimed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedlens.lens.errors import InputError, Unsupported
from families import zoo
from families.family import FAMILIES
from oracles import painting

TILING = (
    *("llava_next", "llava_next_video", "llava_onevision", "llava_onevision_shrunk"),
    *("granite4_vision", "phi4_multimodal", "internvl", "idefics3", "smolvlm", "qwen2_5_vl"),
)
SIZES = ((400, 20), (800, 20), (640, 48), (1300, 31))


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("name", [name for name in TILING if name in FAMILIES])
@pytest.mark.quick("llava_next", "internvl")
def test_a_thin_image_is_placed_right_or_not_at_all(name: str, turned: bool) -> None:
    model, prompt = zoo.visual_lm(name), zoo.built(name).prompt
    wrong: list[Any] = []
    for length, width in SIZES:
        size = (width, length) if turned else (length, width)
        image = painting.smooth(size)
        try:
            batch = model.encode(image, prompt)
        except (InputError, Unsupported):
            continue
        placed = batch.visual.placed & np.isfinite(batch.visual.box).all(1)
        if not placed.any():
            continue
        before = model.entry(batch)
        for part in range(4):
            first, end = length * part // 4, length * (part + 1) // 4
            band = np.array([0, first, width, end] if turned else [first, 0, end, width])
            pixels = np.array(image)
            pixels[band[1] : band[3], band[0] : band[2]] = (255, 0, 255)
            moved = (model.entry(model.encode(Image.fromarray(pixels), prompt)) - before).norm(
                dim=1
            )
            token = int(np.where(placed, moved.numpy(), -1).argmax())
            box = batch.visual.box[token]
            if not (box[int(turned)] < end and box[2 + int(turned)] > first):
                wrong.append((size, band.tolist(), token, box.tolist()))
    assert not wrong
