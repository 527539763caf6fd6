"""Inputs with one video, as each family's processor lays it out in the ids.

The video processors need torchvision, so the pixels are noise in the processor's shape and the ids
are written out here. Frames hide where a still cannot: inside one unbroken run of ids, behind
timestamps, two to a token, or under the id that stands for images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from families.family import Family

FRAMES, ROWS, COLS = 2, 3, 2  # of tokens; frames are steps in time after merging
VIDEOS: dict[str, Callable[[Family], dict[str, torch.Tensor]]] = {}
Build = Callable[[Family], dict[str, torch.Tensor]]


def video(*names: str) -> Callable[[Build], Build]:
    """Register a builder for the families in ``names``; each makes ``FRAMES`` frames."""

    def register(build: Build) -> Build:
        VIDEOS.update(dict.fromkeys(names, build))
        return build

    return register


def _fed(made: Family, pieces: Sequence[str | list[int]], **more: Any) -> dict[str, torch.Tensor]:
    """The ids of text and of runs of tokens, with what the processor derives from ids."""
    tok = made.processor.tokenizer
    ids = list(tok("user :")["input_ids"])
    for piece in (*pieces, "what is this ?"):
        ids += (
            tok(piece, add_special_tokens=False)["input_ids"] if isinstance(piece, str) else piece
        )
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    if "mm_token_type_ids" in made.inputs:
        types = made.processor.create_mm_token_type_ids([ids])
        inputs["mm_token_type_ids"] = torch.tensor(types)
    if "moe_mm_token_type_ids" in made.inputs:
        types = made.processor.create_moe_mm_token_type_ids([ids])
        inputs["moe_mm_token_type_ids"] = torch.tensor(types)
    return {**inputs, **more}


def _pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _tiles(made: Family) -> tuple[torch.Tensor, int]:
    """Frames of whole tiles, and the side of a tile in patches."""
    vision = made.model.config.vision_config
    size = vision.image_size
    return _pixels(1, FRAMES, 3, size, size), size // vision.patch_size


def _patches(made: Family, steps: int, merge: int = 2) -> dict[str, torch.Tensor]:
    """Patches of ``steps`` layers in time, as many values each as a still's, and their grid."""
    grid = torch.tensor([[steps, merge * ROWS, merge * COLS]])
    values = made.inputs["pixel_values"].shape[1:]
    pixels = _pixels(int(grid.prod()), *values)
    return {"pixel_values_videos": pixels, "video_grid_thw": grid}


@video("video_llava")
def video_llava(made: Family) -> dict[str, torch.Tensor]:
    """A frame is its class token, then its raster: stills drop that token, videos keep it."""
    pixels, side = _tiles(made)
    run = [made.model.config.video_token_id] * (FRAMES * (side**2 + 1))
    return _fed(made, [run], pixel_values_videos=pixels)


@video("llava_next_video")
def llava_next_video(made: Family) -> dict[str, torch.Tensor]:
    """A frame is its raster, pooled two by two; no newline, no tiles."""
    pixels, side = _tiles(made)
    run = [made.model.config.video_token_id] * (FRAMES * (side // 2) ** 2)
    return _fed(made, [run], pixel_values_videos=pixels)


@video("llava_onevision", "llava_onevision_shrunk")
def llava_onevision(made: Family) -> dict[str, torch.Tensor]:
    """A frame is its raster, pooled two by two; one newline after the last frame."""
    pixels, side = _tiles(made)
    run = [made.model.config.video_token_id] * (FRAMES * ((side + 1) // 2) ** 2 + 1)
    return _fed(made, [run], pixel_values_videos=pixels)


@video("qwen2_vl", "qwen2_5_vl", "exaone4_5")
def qwen2_vl(made: Family) -> dict[str, torch.Tensor]:
    """All frames in one run."""
    run = [made.model.config.video_token_id] * (FRAMES * ROWS * COLS)
    more: dict[str, Any] = _patches(made, FRAMES)
    if made.model.config.model_type == "qwen2_5_vl":
        more["second_per_grid_ts"] = torch.tensor([1.0])
    return _fed(made, ["<|vision_start|>", run, "<|vision_end|>"], **more)


@video("qwen2_5_omni_thinker")
def qwen2_5_omni_thinker(made: Family) -> dict[str, torch.Tensor]:
    """All frames in one run; without the sound, which would come in between."""
    run = [made.model.config.video_token_id] * (FRAMES * ROWS * COLS)
    more = {**_patches(made, FRAMES), "video_second_per_grid": torch.tensor([1.0])}
    return _fed(made, ["<|vision_bos|>", run, "<|vision_eos|>"], **more)


@video("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
def qwen3_vl(made: Family) -> dict[str, torch.Tensor]:
    """Each frame between marks of its own behind its time, all inside the template's marks."""
    frame = [made.model.config.video_token_id] * (ROWS * COLS)
    pieces: list[str | list[int]] = ["<|vision_start|>"]
    for step in range(FRAMES):
        pieces += [f"<{step}.5 seconds>", "<|vision_start|>", frame, "<|vision_end|>"]
    return _fed(made, [*pieces, "<|vision_end|>"], **_patches(made, FRAMES))


@video("glm4v", "glm46v", "glm4v_moe", "glm_ocr")
def glm4v(made: Family) -> dict[str, torch.Tensor]:
    """Frames are written as images under the *image's* id; only the outer marks tell."""
    frame = [made.model.config.image_token_id] * (ROWS * COLS)
    pieces: list[str | list[int]] = ["<|begin_of_video|>"]
    for step in range(FRAMES):
        pieces += ["<|begin_of_image|>", frame, "<|end_of_image|>", str(step)]
    return _fed(made, [*pieces, "<|end_of_video|>"], **_patches(made, FRAMES))


@video("video_llama_3")
def video_llama_3(made: Family) -> dict[str, torch.Tensor]:
    """Frames are merged two by two and lose tokens that repeat the frame before: no full grid."""
    config = made.model.config
    kept = torch.ones(FRAMES, ROWS * COLS, dtype=torch.bool)
    kept[1, ::2] = False
    pieces: list[str | list[int]] = []
    for step, count in enumerate(kept.sum(1).tolist()):
        pieces += [f"Time {step}.0s:", [config.video_token_id] * count]
    return _fed(
        made,
        pieces,
        **_patches(made, FRAMES),
        video_merge_sizes=torch.tensor([2]),
        video_compression_mask=kept.flatten(),
    )


@video("ernie4_5_vl_moe")
def ernie4_5_vl_moe(made: Family) -> dict[str, torch.Tensor]:
    """Two frames share each token, so the grid counts twice the steps in time."""
    run = [made.model.config.video_token_id] * (FRAMES * ROWS * COLS)
    marks = ("<|VIDEO_START|>", "<|VIDEO_END|>")
    return _fed(made, [marks[0], run, marks[1]], **_patches(made, 2 * FRAMES))


@video("kimi_k25")
def kimi_k25(made: Family) -> dict[str, torch.Tensor]:
    """A video is cut into clips whose frames are averaged; each clip has a row in the grid.

    Clips are one frame long here: for longer ones transformers 5.23 counts the tokens wrongly.
    """
    clip = [made.model.config.video_token_id] * (ROWS * COLS)
    pieces: list[str | list[int]] = []
    for step in range(FRAMES):
        pieces += [f"00:00:0{step}.000", "<|media_begin|>", "video", "<|media_content|>", clip]
        pieces += ["<|media_end|>"]
    whole = _patches(made, FRAMES)
    grid = torch.tensor([[1, 2 * ROWS, 2 * COLS]] * FRAMES)
    return _fed(made, pieces, **{**whole, "video_grid_thw": grid})
