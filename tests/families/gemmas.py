"""Gemma text models: scaled embeddings, images attended to both ways, norms after the sublayers.

Their processors return token types without which the logits change silently; every builder here
keeps them.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import transformers as hf

from families.family import Family, family, tokenizer
from families.parts import fed_family, offline, quiet, text_sizes, vision_sizes
from families.torchless import processors_of

TEMPLATE = (
    "<s>{% for message in messages %}<start_of_turn>{{ message['role'] }} : "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}<end_of_turn>{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>a :{% endif %}"
)


def gemma_sizes(words: Any, layers: int = 3, **others: Any) -> dict[str, Any]:
    return text_sizes(words, layers, head_dim=8, **others)


def siglip(patch: int) -> Any:
    return hf.SiglipVisionConfig(**vision_sizes(image=32, patch=patch, vision_use_head=False))


@family("gemma3")
def gemma3() -> Family:
    words = tokenizer(
        ("<start_of_turn>", "<end_of_turn>", "\n"),
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        words,
        chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>"),
        image_seq_length=16,
    )
    config = hf.Gemma3Config(
        vision_config=siglip(patch=4),
        text_config=hf.Gemma3TextConfig(
            **gemma_sizes(words, layers=4),
            query_pre_attn_scalar=8,
            sliding_window=12,
            layer_types=[*["sliding_attention"] * 2, "full_attention", "sliding_attention"],
        ),
        mm_tokens_per_image=16,
        image_token_index=words.image_token_id,
        boi_token_index=words.boi_token_id,
        eoi_token_index=words.eoi_token_id,
    )
    prompt, size = "<start_of_image> what is this ?", (64, 48)
    return fed_family(
        hf.Gemma3ForConditionalGeneration, config, processor, prompt, size, "vision_tower.encoder"
    )


def _paligemma(text: Any) -> Family:
    words = tokenizer(("\n",), image_token="<image>")
    pixels = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pixels.image_seq_length = 16
    processor = quiet(hf.PaliGemmaProcessor)(pixels, words)
    config = hf.PaliGemmaConfig(
        vision_config=siglip(patch=8),
        text_config=text(words),
        image_token_index=words.image_token_id,
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(words),
    )
    prompt, size = "<image> what is this ?", (64, 48)
    kind = hf.PaliGemmaForConditionalGeneration
    return fed_family(kind, config, processor, prompt, size, "vision_tower.encoder")


@family("paligemma")
def paligemma() -> Family:
    return _paligemma(lambda words: hf.GemmaConfig(**gemma_sizes(words)))


@family("paligemma2")
def paligemma2() -> Family:
    return _paligemma(
        lambda words: hf.Gemma2Config(
            **gemma_sizes(words, layers=4), query_pre_attn_scalar=8, sliding_window=12
        )
    )


def _gemma4(**text: Any) -> Family:
    words = tokenizer(
        ("<start_of_turn>", "<end_of_turn>", "<|video|>"),
        image_token="<|image|>",
        boi_token="<|image>",
        eoi_token="<image|>",
        audio_token="<|audio|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
    )
    processor = offline(hf.Gemma4Processor, "video_processor", "feature_extractor")(
        None,
        # 70 tokens an image is the smallest number the processor allows.
        hf.Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70),
        words,
        processors_of("gemma4.video_processing_gemma4").Gemma4VideoProcessor(patch_size=4),
        chat_template=TEMPLATE.replace("IMAGE", "<|image|>"),
        image_seq_length=70,
    )
    config = hf.Gemma4Config(
        vision_config=hf.Gemma4VisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=12,
            pooling_kernel_size=3,
            patch_size=4,
            position_embedding_size=32,
        ),
        text_config=hf.Gemma4TextConfig(
            **gemma_sizes(words, layers=4),
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2,
            global_head_dim=8,
            **text,
        ),
        audio_config=None,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        image_token_id=words.image_token_id,
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        audio_token_id=words.audio_token_id,
        boa_token_id=words.boa_token_id,
        eoa_token_index=words.eoa_token_id,
    )
    prompt, size = "<|image|> what is this ?", (108, 84)
    return fed_family(
        hf.Gemma4ForConditionalGeneration, config, processor, prompt, size, "vision_tower.encoder"
    )


@family("gemma4")
def gemma4() -> Family:
    return _gemma4(
        vocab_size_per_layer_input=80, hidden_size_per_layer_input=8, num_kv_shared_layers=2
    )


@family("gemma4-moe")
def gemma4_moe() -> Family:
    return _gemma4(
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision",
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
    )


class _Patches(torch.nn.Module):
    """In place of a convolutional tower of timm, which is not installed: one convolution."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, patch, patch)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(last_hidden_state=self.patches(pixel_values))


@family("gemma3n")
def gemma3n() -> Family:
    from transformers.models.gemma3n import (
        Gemma3nAudioConfig,
        Gemma3nConfig,
        Gemma3nProcessor,
        Gemma3nTextConfig,
        Gemma3nVisionConfig,
        modeling_gemma3n,
    )

    words = tokenizer(
        ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<start_of_audio>", "\n")
    )
    # The soft tokens' ids lie behind all of the text's, and have embeddings of their own.
    last = ("<end_of_image>", "<image_soft_token>", "<end_of_audio>", "<audio_soft_token>")
    text_words = len(words)
    words.add_tokens(list(last), special_tokens=True)
    named = (
        ("boi", "<start_of_image>"),
        ("boa", "<start_of_audio>"),
        *zip(("eoi", "image", "eoa", "audio"), last, strict=True),
    )
    for name, token in named:
        setattr(words, f"{name}_token", token)
        setattr(words, f"{name}_token_id", words.convert_tokens_to_ids(token))
    processor = offline(Gemma3nProcessor, "feature_extractor")(
        None,
        hf.SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        words,
        chat_template=TEMPLATE.replace("IMAGE", "<image_soft_token>"),
        image_seq_length=16,
    )
    config = Gemma3nConfig(
        text_config=Gemma3nTextConfig(
            **gemma_sizes(words, layers=4),
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention"] * 2,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=text_words,
            hidden_size_per_layer_input=8,
            altup_num_inputs=3,
            laurel_rank=8,
        ),
        vision_config=Gemma3nVisionConfig(hidden_size=24, vocab_size=2, vocab_offset=text_words),
        audio_config=Gemma3nAudioConfig(
            hidden_size=16,
            vocab_size=2,
            vocab_offset=text_words + 2,
            input_feat_size=32,
            conf_num_attention_heads=2,
            conf_num_hidden_layers=1,
            sscp_conv_channel_size=(4, 4),
        ),
        vision_soft_tokens_per_image=16,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        image_token_id=words.image_token_id,
        boa_token_id=words.boa_token_id,
        eoa_token_id=words.eoa_token_id,
        audio_token_id=words.audio_token_id,
    )
    made = modeling_gemma3n.AutoModel.from_config

    def from_config(part: Any, **others: Any) -> Any:
        if part is config.vision_config:
            return _Patches(width=24, patch=8)
        return made(part, **others)

    with mock.patch.object(modeling_gemma3n.AutoModel, "from_config", from_config):
        prompt, size = "<image_soft_token> what is this ?", (64, 48)
        return fed_family(hf.Gemma3nForConditionalGeneration, config, processor, prompt, size)
