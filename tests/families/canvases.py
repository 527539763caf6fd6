"""Tiling families whose tiles overlap, are padded, or differ in size: no plain grid of tiles.

An image need not fill its tiles: padding has tokens too, and the box of such a token ends outside
the image.
"""

from __future__ import annotations

from typing import Any

import transformers as hf

from families.family import Family, family, tokenizer
from families.parts import chat, fed_family, offline, text_sizes, vision_sizes
from families.torchless import processors_of


@family("llama4")
def llama4() -> Family:
    words = tokenizer(
        (
            "<|image|>",
            "<|image_start|>",
            "<|image_end|>",
            "<|patch|>",
            "<|tile_x_separator|>",
            "<|tile_y_separator|>",
            "<|header_start|>",
            "<|header_end|>",
            "<|eot|>",
        )
    )
    images = processors_of("llama4.image_processing_llama4")
    processor = hf.Llama4Processor(
        images.Llama4ImageProcessor(size={"height": 24, "width": 24}, max_patches=6),
        words,
        patch_size=4,
        pixel_shuffle_ratio=0.5,
        chat_template=chat("<|image|>", "<|header_start|>", "<|eot|>"),
    )
    config = hf.Llama4Config(
        vision_config=hf.Llama4VisionConfig(
            **vision_sizes(image=24, patch=4, hidden_size=32, intermediate_size=128),
            vision_output_dim=24,
            projector_input_dim=24,
            projector_output_dim=24,
        ),
        text_config=hf.Llama4TextConfig(
            **text_sizes(words, layers=4, head_dim=8),
            intermediate_size_mlp=48,
            num_local_experts=2,
            interleave_moe_layer_step=2,
            attention_chunk_size=32,
        ),
        boi_token_index=words.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=words.convert_tokens_to_ids("<|image_end|>"),
        image_token_index=words.convert_tokens_to_ids("<|patch|>"),
    )
    # 68 wide on a canvas of 72: the last cells are half padding.
    prompt, size = "<|image|> what is this ?", (68, 48)
    return fed_family(
        hf.Llama4ForConditionalGeneration, config, processor, prompt, size, "vision_model.model"
    )


@family("molmo2")
def molmo2() -> Family:
    marks = "im_patch im_col im_start low_res_im_start frame_start im_end frame_end im_low".split()
    words = tokenizer(
        (*(f"<{mark}>" for mark in marks), "<|im_start|>", "<|im_end|>"),
        image_token="<|image|>",
        video_token="<|video|>",
    )
    images = processors_of("molmo2.image_processing_molmo2")
    processor = offline(hf.Molmo2Processor)(
        images.Molmo2ImageProcessor(
            size={"height": 24, "width": 24}, patch_size=4, overlap_margins=[1, 1], max_crops=6
        ),
        processors_of("molmo2.video_processing_molmo2").Molmo2VideoProcessor(
            size={"height": 24, "width": 24}, patch_size=4
        ),
        words,
        chat_template=chat("<|image|>", "<|im_start|>", "<|im_end|>"),
    )
    tower: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 12}
    config = hf.Molmo2Config(
        vision_config=hf.Molmo2VisionConfig(
            **{**vision_sizes(image=24, patch=4), **tower, "image_size": [24, 24]},
            num_position_embeddings=36,
        ),
        adapter_config=hf.Molmo2AdapterConfig(
            vision_feature_layer=[-1, -2],
            hidden_size=24,
            intermediate_size=32,
            text_hidden_size=32,
            **tower,
        ),
        # The last words live in the additional rows of the embedding, which the head lacks.
        text_config=hf.Molmo2TextConfig(
            **text_sizes(words, head_dim=8, vocab_size=len(words) - 8), additional_vocab_size=8
        ),
        image_start_token_id=words.convert_tokens_to_ids("<im_start>"),
        low_res_image_start_token_id=words.convert_tokens_to_ids("<low_res_im_start>"),
        image_end_token_id=words.convert_tokens_to_ids("<im_end>"),
        image_patch_id=words.convert_tokens_to_ids("<im_patch>"),
        frame_start_token_id=words.convert_tokens_to_ids("<frame_start>"),
        frame_end_token_id=words.convert_tokens_to_ids("<frame_end>"),
    )
    prompt, size = "<|image|> what is this ?", (56, 40)
    return fed_family(
        hf.Molmo2ForConditionalGeneration, config, processor, prompt, size, "vision_tower.layers"
    )


@family("lfm2_vl")
def lfm2_vl() -> Family:
    words = tokenizer(
        (
            *(f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)),
            "<|im_start|>",
            "<|im_end|>",
        ),
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
    )
    images = processors_of("lfm2_vl.image_processing_lfm2_vl")
    processor = hf.Lfm2VlProcessor(
        images.Lfm2VlImageProcessor(
            tile_size=24, encoder_patch_size=4, min_image_tokens=4, max_image_tokens=12
        ),
        words,
        chat_template=chat("<image>", "<|im_start|>", "<|im_end|>"),
    )
    vision = vision_sizes(image=24, patch=4)
    del vision["image_size"]
    config = hf.Lfm2VlConfig(
        vision_config=hf.Siglip2VisionConfig(**vision, num_patches=36, vision_use_head=False),
        text_config=hf.Lfm2Config(
            **text_sizes(words), layer_types=["conv", "full_attention", "conv"]
        ),
        image_token_id=words.image_token_id,
        projector_hidden_size=48,
    )
    prompt, size = "<image> what is this ?", (72, 48)
    return fed_family(
        hf.Lfm2VlForConditionalGeneration, config, processor, prompt, size, "vision_tower.encoder"
    )


@family("perception_lm")
def perception_lm() -> Family:
    words = tokenizer(
        ("<|header_start|>", "<|eot|>"), image_token="<|image|>", video_token="<|video|>"
    )
    images = processors_of("perception_lm.image_processing_perception_lm")
    processor = offline(hf.PerceptionLMProcessor)(
        processors_of("perception_lm.video_processing_perception_lm").PerceptionLMVideoProcessor(
            size={"height": 24, "width": 24}
        ),
        images.PerceptionLMImageProcessor(tile_size=24, max_num_tiles=6),
        words,
        patch_size=4,
        pooling_ratio=2,
        chat_template=chat("<|image|>", "<|header_start|>", "<|eot|>"),
    )
    # The released towers come from timm; any tower with a first class token fits the model.
    vision = hf.CLIPVisionConfig(**vision_sizes(image=24, patch=4))
    vision.model_args = {"embed_dim": 24}
    config = hf.PerceptionLMConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**text_sizes(words)),
        projector_pooling_ratio=2,
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
    )
    prompt, size = "<|image|> what is this ?", (72, 48)
    kind = hf.PerceptionLMForConditionalGeneration
    return fed_family(kind, config, processor, prompt, size, "vision_tower.encoder")


@family("phi4_multimodal")
def phi4_multimodal() -> Family:
    words = tokenizer(
        ("<|user|>", "<|end|>"), image_token="<|endoftext10|>", audio_token="<|endoftext11|>"
    )
    images = processors_of("phi4_multimodal.image_processing_phi4_multimodal")
    processor = offline(hf.Phi4MultimodalProcessor, "audio_processor")(
        # Thirty-two patches a side: the processor's 256 tokens for the whole image are a constant.
        images.Phi4MultimodalImageProcessor(size={"height": 64, "width": 64}, patch_size=2),
        None,
        words,
        chat_template=chat("<|endoftext10|>", "<|user|>", "<|end|>"),
    )
    config = hf.Phi4MultimodalConfig(
        vision_config=hf.Phi4MultimodalVisionConfig(
            **vision_sizes(image=64, patch=2), crop_size=64, image_token_id=words.image_token_id
        ),
        audio_config=hf.Phi4MultimodalAudioConfig(
            hidden_size=16,
            intermediate_size=16,
            num_blocks=1,
            num_attention_heads=2,
            ext_pw_out_channel=16,
            depthwise_separable_out_channel=16,
            nemo_conv_channels=8,
            input_size=16,
            audio_token_id=words.audio_token_id,
        ),
        **text_sizes(words, max_position_embeddings=2048),
        original_max_position_embeddings=2048,
    )
    # Two crops, three quarters of each padding that has no tokens.
    prompt, size = "<|endoftext10|> what is this ?", (128, 16)
    kind = hf.Phi4MultimodalForCausalLM
    return fed_family(kind, config, processor, prompt, size, "image_embed.img_processor.encoder")
