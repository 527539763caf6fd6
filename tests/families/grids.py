"""Families that take any resolution: as many tokens as the image has cells, in rows from the top.

Patches reach the tower in blocks that are merged into one token, not in rows; tokens leave in rows.
How many rows and columns there are stands in `image_grid_thw`, in patches before merging, and
nowhere in the ids: three rows of four look like four rows of three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers as hf
from transformers import PreTrainedTokenizerFast

from families.family import Family, family, tokenizer
from families.parts import fed_family, offline, text_sizes
from families.rasters import chat_of

PATCH, MERGE = 8, 2
CELL = PATCH * MERGE
SIZE = (4 * CELL, 3 * CELL)
# Areas in pixels between which an image keeps its size, rounded to cells.
AREAS = {"shortest_edge": 4 * CELL**2, "longest_edge": 64 * CELL**2}
CALM = ("attn.proj", "attn.out_proj")
PADS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TURNS = ("<|im_start|>", "<|im_end|>")
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary positions in three axes, with this many frequencies for time, rows and columns."""
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}


def tower(**more: Any) -> dict[str, Any]:
    """Settings of a small tower that merges blocks of two by two patches."""
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        **more,
    }


def ids_of(tok: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids of Qwen's marks, under the names of its configuration."""
    names = ("vision_start", "vision_end", "image", "video")
    tokens = zip(names, PADS, strict=True)
    return {f"{name}_token_id": tok.convert_tokens_to_ids(token) for name, token in tokens}


def qwen(model: Any, config: Any, processor: Any, tok: PreTrainedTokenizerFast) -> Family:
    """A family that uses the image processor and the marks of Qwen2-VL."""

    prompt = f"<|im_start|>user\n{IMAGE}what is this ?<|im_end|>\n<|im_start|>assistant\n"
    made = offline(processor)(
        image_processor=hf.Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=MERGE, size=AREAS),
        tokenizer=tok,
        video_processor=None,
        chat_template=chat_of(IMAGE, VIDEO),
    )
    return fed_family(model, config, made, prompt, SIZE, *CALM)


@family("qwen2_vl")
def qwen2_vl() -> Family:

    tok = tokenizer(special=(*PADS, *TURNS))
    sizes = tower(embed_dim=32, mlp_ratio=1)
    del sizes["intermediate_size"], sizes["out_hidden_size"]
    config = hf.Qwen2VLConfig(
        vision_config=sizes,
        text_config=text_sizes(tok, rope_parameters=rope(2, 1, 1)),
        **ids_of(tok),
    )
    return qwen(hf.Qwen2VLForConditionalGeneration, config, hf.Qwen2VLProcessor, tok)


@family("qwen2_5_vl")
def qwen2_5_vl() -> Family:

    tok = tokenizer(special=(*PADS, *TURNS))
    config = hf.Qwen2_5_VLConfig(
        # Windows of two by two cells: the tower shuffles cells and must shuffle them back.
        vision_config=tower(window_size=2 * CELL, fullatt_block_indexes=[1]),
        text_config=text_sizes(tok, rope_parameters=rope(2, 1, 1)),
        **ids_of(tok),
    )
    return qwen(hf.Qwen2_5_VLForConditionalGeneration, config, hf.Qwen2_5_VLProcessor, tok)


def _qwen3_tower(**more: Any) -> dict[str, Any]:
    return tower(num_position_embeddings=64, **more)


@family("qwen3_vl")
def qwen3_vl() -> Family:

    tok = tokenizer(special=(*PADS, *TURNS))
    turns = rope(2, 1, 1, mrope_interleaved=True)
    config = hf.Qwen3VLConfig(
        vision_config=_qwen3_tower(deepstack_visual_indexes=[0, 1]),
        text_config=text_sizes(tok, head_dim=8, num_hidden_layers=4, rope_parameters=turns),
        **ids_of(tok),
    )
    return qwen(hf.Qwen3VLForConditionalGeneration, config, hf.Qwen3VLProcessor, tok)


@family("qwen3_vl_moe")
def qwen3_vl_moe() -> Family:

    tok = tokenizer(special=(*PADS, *TURNS))
    text = text_sizes(
        tok,
        head_dim=8,
        num_hidden_layers=4,
        rope_parameters=rope(2, 1, 1, mrope_interleaved=True),
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    config = hf.Qwen3VLMoeConfig(
        vision_config=_qwen3_tower(deepstack_visual_indexes=[0, 1]), text_config=text, **ids_of(tok)
    )
    return qwen(hf.Qwen3VLMoeForConditionalGeneration, config, hf.Qwen3VLProcessor, tok)


def _hybrid(tok: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    turns = rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    return text_sizes(
        tok,
        head_dim=16,
        num_hidden_layers=4,
        rope_parameters=turns,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        **more,
    )


@family("qwen3_5")
def qwen3_5() -> Family:

    tok = tokenizer(special=(*PADS, *TURNS))
    config = hf.Qwen3_5Config(vision_config=_qwen3_tower(), text_config=_hybrid(tok), **ids_of(tok))
    return qwen(hf.Qwen3_5ForConditionalGeneration, config, hf.Qwen3VLProcessor, tok)


@family("qwen3_5_moe")
def qwen3_5_moe() -> Family:

    tok = tokenizer(special=(*PADS, *TURNS))
    text = _hybrid(
        tok,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    config = hf.Qwen3_5MoeConfig(vision_config=_qwen3_tower(), text_config=text, **ids_of(tok))
    return qwen(hf.Qwen3_5MoeForConditionalGeneration, config, hf.Qwen3VLProcessor, tok)


GLM = (
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)


def glm(
    model: Any,
    config: Any,
    text: Mapping[str, Any],
    vision: Mapping[str, Any] | None = None,
    processors: tuple[Any, Any] | None = None,
) -> Family:
    """A family that uses the marks of GLM-4V, and its processors unless told otherwise."""

    whole, images = processors or (hf.Glm4vProcessor, hf.Glm4vImageProcessorPil)
    tok = tokenizer(special=(*GLM, "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"))
    names = ("image_start", "image_end", "video_start", "video_end", "image", "video")
    marks = {
        f"{name}_token_id": tok.convert_tokens_to_ids(token)
        for name, token in zip(names, GLM, strict=True)
    }
    settings = config(
        vision_config=tower(image_size=4 * CELL, **(vision or {})),
        text_config=text_sizes(tok, **text),
        **marks,
    )
    image = "<|begin_of_image|><|image|><|end_of_image|>"
    prompt = f"[gMASK]<sop><|user|>\n{image}what is this ?<|assistant|>\n"
    made = offline(whole)(
        image_processor=images(
            # Areas count both copies of a still: it is treated as a clip of two frames.
            patch_size=PATCH,
            merge_size=MERGE,
            size={name: 2 * area for name, area in AREAS.items()},
        ),
        tokenizer=tok,
        video_processor=None,
        chat_template=(
            "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n"
            "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
            + image
            + "{% elif"
            " part['type'] == 'video' %}<|begin_of_video|><|video|><|end_of_video|>{% else %}"
            "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
        ),
    )
    return fed_family(model, settings, made, prompt, SIZE, *CALM)


@family("glm4v")
def glm4v() -> Family:

    text = {"rope_parameters": rope(2, 1, 1)}
    return glm(hf.Glm4vForConditionalGeneration, hf.Glm4vConfig, text)


@family("glm46v")
def glm46v() -> Family:
    return glm(
        hf.Glm46VForConditionalGeneration,
        hf.Glm46VConfig,
        {"rope_parameters": rope(2, 1, 1), "model_type": "glm4v_text"},
        {"model_type": "glm4v_vision"},
        (hf.Glm46VProcessor, hf.Glm46VImageProcessorPil),
    )


@family("glm4v_moe")
def glm4v_moe() -> Family:

    text = {
        "rope_parameters": rope(1, 1, partial_rotary_factor=0.5),
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    }
    return glm(hf.Glm4vMoeForConditionalGeneration, hf.Glm4vMoeConfig, text)


@family("glm_ocr")
def glm_ocr() -> Family:
    return glm(
        hf.GlmOcrForConditionalGeneration,
        hf.GlmOcrConfig,
        {"rope_parameters": rope(2, 1, 1)},
        processors=(hf.Glm46VProcessor, hf.Glm46VImageProcessorPil),
    )
