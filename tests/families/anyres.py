"""Families that show an image twice: squeezed into one tile, then as tiles of a padded canvas.

The canvas is put together again before the tokens are laid out, so tokens come in rows that run
across tiles, rows of padding are cut off, and a learned "newline" ends each line, under the same id
as the patches. Nothing but the image's size tells where a line ends.
"""

from __future__ import annotations

from typing import Any

import transformers as hf

from families.family import Family, family, tokenizer
from families.parts import fed_family, offline, text_sizes, vision_sizes
from families.rasters import CALM, USER, begins, chat_of

PATCH, SIDE = 8, 4
TILE = PATCH * SIDE
# Canvases are (height, width), unlike sizes of images.
CANVASES = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]


def _clip() -> Any:

    return hf.CLIPVisionConfig(**vision_sizes(TILE, PATCH, num_hidden_layers=3))


def _tiles() -> dict[str, Any]:
    return {
        "size": {"shortest_edge": TILE},
        "crop_size": {"height": TILE, "width": TILE},
        "image_grid_pinpoints": CANVASES,
    }


@family("llava_next")
def llava_next() -> Family:
    tok = begins(tokenizer(image_token="<image>"))
    config = hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=hf.MistralConfig(**text_sizes(tok), sliding_window=None),
        image_token_index=tok.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=CANVASES,
        image_seq_length=SIDE * SIDE,
    )
    prompt, size = "user : <image> what is this ? a :", (6 * PATCH, TILE)
    made = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessorPil(**_tiles()),
        tokenizer=tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=USER,
    )
    return fed_family(hf.LlavaNextForConditionalGeneration, config, made, prompt, size, *CALM)


@family("llava_next_video")
def llava_next_video() -> Family:
    tok = begins(tokenizer(image_token="<image>", video_token="<video>"))
    config = hf.LlavaNextVideoConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**text_sizes(tok)),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=CANVASES,
        image_seq_length=SIDE * SIDE,
        video_seq_length=2 * (SIDE // 2) ** 2,
    )
    prompt, size = "user : <image> what is this ? a :", (TILE, 6 * PATCH)
    made = offline(hf.LlavaNextVideoProcessor)(
        video_processor=None,
        image_processor=hf.LlavaNextImageProcessorPil(**_tiles()),
        tokenizer=tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=USER,
    )
    return fed_family(hf.LlavaNextVideoForConditionalGeneration, config, made, prompt, size, *CALM)


def _onevision(aspect: str, size: tuple[int, int]) -> Family:
    tok = tokenizer(
        image_token="<image>", video_token="<video>", special=("<|im_start|>", "<|im_end|>")
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision_sizes(TILE, PATCH, vision_use_head=False)),
        text_config=hf.Qwen2Config(**text_sizes(tok)),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=CANVASES,
        vision_aspect_ratio=aspect,
    )
    prompt = "<|im_start|>user\n<image>\nwhat is this ?<|im_end|>\n<|im_start|>assistant\n"
    made = offline(hf.LlavaOnevisionProcessor)(
        image_processor=hf.LlavaOnevisionImageProcessorPil(
            size={"height": TILE, "width": TILE}, image_grid_pinpoints=CANVASES
        ),
        tokenizer=tok,
        video_processor=None,
        num_image_tokens=SIDE * SIDE,
        vision_feature_select_strategy="full",
        chat_template=chat_of("<image>\n", "<video>\n"),
        vision_aspect_ratio=aspect,
    )
    return fed_family(hf.LlavaOnevisionForConditionalGeneration, config, made, prompt, size, *CALM)


@family("llava_onevision")
def llava_onevision() -> Family:
    return _onevision("anyres_max_9", (2 * TILE, 6 * PATCH))


@family("llava_onevision_shrunk")
def llava_onevision_shrunk() -> Family:
    """The canvas has more cells than allowed: its 6 rows of 8 are shrunk to 4 rows of 6."""
    return _onevision("anyres_max_2", (2 * TILE, 6 * PATCH))
