"""Families whose image is one square raster: a token per cell, in rows from the top, no markers.

What differs is what happens to the image before it: cropped to its centre (llava and its kin) or
padded to a square (deepseek_vl, janus). Both look the same in the ids, so only the image processor
tells where a token is.
"""

from __future__ import annotations

from typing import Any

import transformers as hf
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from families.family import Family, family, tokenizer
from families.parts import fed_family, offline, text_sizes, vision_sizes

PATCH, SIDE = 8, 4
PIXELS = PATCH * SIDE
# Output projections of CLIP, SigLIP and their like: a token then shows the pixels of its own cell.
CALM = ("out_proj", "fc2", "self_attn.projection_layer")
USER = (
    "{% for message in messages %}user : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% elif part['type'] == 'video' %}<video> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}a :{% endif %}"
)


def chat_of(
    image: str, video: str = "", start: str = "<|im_start|>", end: str = "<|im_end|>"
) -> str:
    """The chat template in ChatML style, with what stands for an image and for a video."""
    return (
        "{% for message in messages %}"
        f"{start}{{{{ message['role'] }}}}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}"
        f"{{% elif part['type'] == 'video' %}}{video}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        f"{end}\n{{% endfor %}}{{% if add_generation_prompt %}}{start}assistant\n{{% endif %}}"
    )


def begins(tok: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """``tok``, which now writes ``<s>`` before a text unless told not to, as LLaMA's does."""
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.bos_token_id)]
    )
    return tok


def clip(layers: int = 3) -> Any:
    """Settings of a small CLIP tower on images of ``PIXELS``."""
    return hf.CLIPVisionConfig(**vision_sizes(PIXELS, PATCH, num_hidden_layers=layers))


def clip_images() -> dict[str, Any]:
    return {
        "size": {"shortest_edge": PIXELS},
        "crop_size": {"height": PIXELS, "width": PIXELS},
    }


def _llava_processor(tok: PreTrainedTokenizerFast) -> Any:
    return hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(**clip_images()),
        tokenizer=tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=USER,
    )


@family("llava")
def llava() -> Family:

    tok = begins(tokenizer(image_token="<image>"))
    config = hf.LlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**text_sizes(tok)),
        image_token_index=tok.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=SIDE * SIDE,
    )
    prompt, size = "user : <image> what is this ? a :", (48, 32)
    made = _llava_processor(tok)
    return fed_family(hf.LlavaForConditionalGeneration, config, made, prompt, size, *CALM)


@family("vipllava")
def vipllava() -> Family:

    tok = begins(tokenizer(image_token="<image>"))
    config = hf.VipLlavaConfig(
        vision_config=clip(layers=4),
        text_config=hf.LlamaConfig(**text_sizes(tok)),
        image_token_index=tok.image_token_id,
        vision_feature_layer=[-1, -2, -3],
        image_seq_length=SIDE * SIDE,
    )
    prompt, size = "user : <image> what is this ? a :", (32, 48)
    made = _llava_processor(tok)
    return fed_family(hf.VipLlavaForConditionalGeneration, config, made, prompt, size, *CALM)


@family("video_llava")
def video_llava() -> Family:

    tok = begins(tokenizer(image_token="<image>", video_token="<video>"))
    config = hf.VideoLlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**text_sizes(tok)),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=SIDE * SIDE,
        video_seq_length=2 * (SIDE * SIDE + 1),
    )
    prompt, size = "user : <image> what is this ? a :", (48, 32)
    made = offline(hf.VideoLlavaProcessor)(
        image_processor=hf.VideoLlavaImageProcessor(**clip_images()),
        video_processor=None,
        tokenizer=tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=USER,
    )
    return fed_family(hf.VideoLlavaForConditionalGeneration, config, made, prompt, size, *CALM)


@family("deepseek_vl")
def deepseek_vl() -> Family:
    tok = begins(tokenizer(image_token="<image_placeholder>"))
    config = hf.DeepseekVLConfig(
        vision_config=hf.SiglipVisionConfig(**vision_sizes(PIXELS, PATCH, vision_use_head=False)),
        text_config=hf.LlamaConfig(**text_sizes(tok)),
        image_token_id=tok.image_token_id,
        tie_word_embeddings=True,
    )
    prompt, size = "user : <image_placeholder> what is this ? a :", (32, 16)
    made = hf.DeepseekVLProcessor(
        image_processor=hf.DeepseekVLImageProcessorPil(
            size={"height": PIXELS, "width": PIXELS}, min_size=PATCH
        ),
        tokenizer=tok,
        chat_template=USER.replace("<image>", "<image_placeholder>"),
        num_image_tokens=SIDE * SIDE,
    )
    return fed_family(hf.DeepseekVLForConditionalGeneration, config, made, prompt, size, *CALM)


@family("janus")
def janus() -> Family:
    tok = begins(
        tokenizer(
            image_token="<image_placeholder>",
            boi_token="<begin_of_image>",
            eoi_token="<end_of_image>",
        )
    )
    config = hf.JanusConfig(
        vision_config=hf.JanusVisionConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=1.5,
            image_size=PIXELS,
            patch_size=PATCH,
            projection_dim=32,
            num_image_tokens=SIDE * SIDE,
        ),
        vq_config=hf.JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            num_patches=4,
            projection_dim=32,
            image_token_embed_dim=32,
        ),
        text_config=hf.LlamaConfig(**text_sizes(tok)),
        image_token_id=tok.image_token_id,
        tie_word_embeddings=True,
    )
    prompt, size = "user : <image_placeholder> what is this ? a :", (32, 16)
    made = hf.JanusProcessor(
        image_processor=hf.JanusImageProcessorPil(
            size={"height": PIXELS, "width": PIXELS}, min_size=PATCH
        ),
        tokenizer=tok,
        chat_template=USER.replace("<image>", "<image_placeholder>"),
        num_image_tokens=SIDE * SIDE,
    )
    return fed_family(hf.JanusForConditionalGeneration, config, made, prompt, size, *CALM)
