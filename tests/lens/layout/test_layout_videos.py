"""The places of video tokens: shake one cell of one frame and see which token moves most.

Frames are shaken in the tensors: what a video processor does to its frames is not measured.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedlens.lens.layout import locate
from embedlens.lens.visual_tokens import VisualTokens
from families import zoo
from families.processed_videos import PROMPTS_WITH_VIDEO, with_video
from families.video_inputs import VIDEOS
from oracles import painting

Inputs = dict[str, torch.Tensor]
# Frames stand under the id of images there, and nothing but their number says so.
AS_IMAGES = ("internvl", "smolvlm")
# Each row of its grid is a clip of the video, and nothing says which clips are one.
CLIPPED = ("kimi_k25",)


def video(name: str) -> tuple[Inputs, VisualTokens]:
    family = zoo.built(name)
    inputs = VIDEOS[name](family) if name in VIDEOS else with_video(name, family)
    config, ids = family.model.config, inputs["input_ids"]
    mask = (ids == config.image_token_id) | (ids == getattr(config, "video_token_id", -1))
    films = [[3]] if name in AS_IMAGES else None
    images = [[]] if name in AS_IMAGES else None
    return inputs, locate(
        inputs, mask, images, config=config, processor=family.processor, frames_per_video=films
    )


def shaken(inputs: Inputs, visual: VisualTokens, token: int) -> Inputs:
    """The inputs with other pixels where the token is said to look."""
    time, row, col = (int(array[token]) for array in (visual.time, visual.row, visual.col))
    name = "pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"
    clip = int(visual.image[token])
    rows, cols = visual.grid(image=clip, time=0)
    pixels = inputs[name].clone()
    if "video_position_ids" in inputs:
        place = inputs["video_position_ids"][time]
        pool = int(place[:, 0].max() + 1) // cols
        pixels[time, (place // pool == torch.tensor([col, row])).all(dim=-1)] += 2
    elif "video_token_pooling" in inputs:
        patches = inputs["video_token_pooling"][(time * rows + row) * cols + col]
        pixels.flatten(0, 1)[patches[patches >= 0].long()] += 2
    elif "video_grid_thw" in inputs:
        steps, height, width = inputs["video_grid_thw"][clip].tolist()
        shared = steps // (int(visual.time.max()) + 1)  # layers of patches in one token
        side = height // rows
        patches = torch.arange(height * width).reshape(rows, cols, side, side)
        if len(inputs["video_grid_thw"]) > 1:  # row by row, not token by token
            patches = torch.arange(height * width).reshape(rows, side, cols, side).transpose(1, 2)
        start = (clip * steps + time * shared) * height * width
        pixels[start + patches[row, col].flatten()] += 2
    else:
        frame = pixels.flatten(0, -4)[time]
        high, wide = frame.shape[-2] // rows, frame.shape[-1] // cols
        frame[:, row * high : (row + 1) * high, col * wide : (col + 1) * wide] += 2
    return {**inputs, name: pixels}


@pytest.mark.parametrize("name", [*VIDEOS, *PROMPTS_WITH_VIDEO])
def test_the_token_of_a_frame_and_cell_moves_most_when_that_is_shaken(name: str) -> None:
    inputs, visual = video(name)
    model = zoo.built(name).model
    before = painting.entry(model, inputs)[visual.sample, visual.position]
    placed = np.flatnonzero(visual.placed)
    for token in placed[np.linspace(0, len(placed) - 1, 5).round().astype(int)]:
        after = painting.entry(model, shaken(inputs, visual, int(token)))
        moved = (after[visual.sample, visual.position] - before).norm(dim=-1)
        assert int(moved.argmax()) == token, visual.frame.loc[[token, int(moved.argmax())]]


@pytest.mark.parametrize("name", [*VIDEOS, *PROMPTS_WITH_VIDEO])
def test_a_video_is_one_image_with_frames(name: str) -> None:
    _, visual = video(name)
    axis = visual.image if name in CLIPPED else visual.time
    number = 3 if name in PROMPTS_WITH_VIDEO else 2
    assert set(axis) == set(range(number))
    assert set(visual.time if name in CLIPPED else visual.image) == {0}
    assert set(visual.tile) == {0}
    assert np.isnan(visual.box).all()
    assert (visual.frame["frame"] == visual.time).all()
