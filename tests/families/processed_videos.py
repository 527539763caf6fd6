"""Inputs with a video, for families whose processor takes one: frames are not images.

A family's video tokens may bear the image's id or one of their own, and frames may be laid out
otherwise than an image of the same size.
"""

from __future__ import annotations

import numpy as np
import torch

from families.family import Family, noise

PROMPTS_WITH_VIDEO = {
    "internvl": "<video> what is this ?",
    "smolvlm": "<video> what is this ?",
    "molmo2": "<|video|> what is this ?",
    "perception_lm": "<|video|> what is this ?",
    "gemma4": "<|video|> what is this ?",
    "gemma4-moe": "<|video|> what is this ?",
}


def frames(number: int, size: tuple[int, int]) -> torch.Tensor:
    """A video of [frame, channel, height, width], every frame different noise."""
    images = [np.asarray(noise(size, seed)) for seed in range(number)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def with_video(name: str, family: Family, number: int = 3) -> dict[str, torch.Tensor]:
    """All the processor makes of one short video and the family's prompt for it."""
    made = family.processor(
        text=[PROMPTS_WITH_VIDEO[name]],
        videos=[frames(number, family.size)],
        do_sample_frames=False,
        return_tensors="pt",
    )
    return {
        key: value.float() if value.is_floating_point() else value
        for key, value in made.items()
        if isinstance(value, torch.Tensor)
    }
