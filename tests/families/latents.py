"""Models whose visual tokens are learned queries rather than rows of a patch projector.

Query i of a resampler has no cell in the image: a grid drawn over it would show structure that is
not there. Queries of small windows look the same in a config, and do have a cell.
"""

from __future__ import annotations

from typing import Any

import transformers as hf

from families.family import Family, family, tokenizer
from families.parts import fed_family, text_sizes, vision_sizes
from tiny import CHAT

EYE = vision_sizes(image=32, patch=8, num_attention_heads=4)


def _questions(words: Any) -> dict[str, Any]:
    """Settings of a Q-Former that reads these words."""
    kept = {key: value for key, value in EYE.items() if key not in ("image_size", "patch_size")}
    return {**kept, "vocab_size": len(words), "encoder_hidden_size": 24}


@family("blip-2")
def blip2() -> Family:
    """OPT text: learned positions are added after inputs_embeds, feed-forward without a module."""

    tok = tokenizer(("<image>",))
    tok.padding_side = "left"
    config = hf.Blip2Config(
        text_config=hf.OPTConfig(
            vocab_size=len(tok),
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ).to_dict(),
        vision_config=EYE,
        qformer_config=_questions(tok),
        num_query_tokens=6,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    processor = hf.Blip2Processor(
        hf.BlipImageProcessorPil(size={"height": 32, "width": 32}), tok, num_query_tokens=6
    )
    size, prompt = (48, 32), "what is this ?"
    return fed_family(hf.Blip2ForConditionalGeneration, config, processor, prompt, size)


@family("instructblip")
def instructblip() -> Family:
    """The queries read the instruction too, through a second tokenizer and its own input ids."""

    tok, asking = tokenizer(("<image>",)), tokenizer()
    tok.padding_side = "left"
    config = hf.InstructBlipConfig(
        text_config=hf.LlamaConfig(**text_sizes(tok)).to_dict(),
        vision_config=EYE,
        qformer_config=_questions(asking),
        num_query_tokens=6,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    processor = hf.InstructBlipProcessor(
        hf.BlipImageProcessorPil(size={"height": 32, "width": 32}), tok, asking, num_query_tokens=6
    )
    size, prompt = (48, 32), "what is this ?"
    return fed_family(hf.InstructBlipForConditionalGeneration, config, processor, prompt, size)


@family("idefics2")
def idefics2() -> Family:
    """A perceiver of four latents for each of the four quarters and for the whole image."""

    tok = tokenizer(
        ("<end_of_utterance>",),
        image_token="<image>",
        image_boundary_token="<fake_token_around_image>",
    )
    tok.padding_side = "left"
    config = hf.Idefics2Config(
        text_config=hf.MistralConfig(**text_sizes(tok), sliding_window=None).to_dict(),
        vision_config=EYE,
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )
    processor = hf.Idefics2Processor(
        hf.Idefics2ImageProcessorPil(
            size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=True
        ),
        tok,
        image_seq_len=4,
        chat_template=CHAT,
    )
    size, prompt = (32, 16), "<image> what is this ?"
    return fed_family(hf.Idefics2ForConditionalGeneration, config, processor, prompt, size)


@family("aria")
def aria() -> Family:
    """Cross-attention queries per crop (crops in raster order), mixture of experts in the text.

    The image processor takes crops of 490 or 980 pixels only, so the patches are large instead.
    """

    tok = tokenizer(image_token="<image>")
    tok.padding_side = "left"
    config = hf.AriaConfig(
        text_config=hf.AriaTextConfig(
            **text_sizes(tok), moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
        ),
        vision_config=hf.Idefics3VisionConfig(**{**EYE, "image_size": 490, "patch_size": 98}),
        projector_patch_to_query_dict={25: 4},
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    processor = hf.AriaProcessor(
        hf.AriaImageProcessorPil(max_image_size=490, split_image=True),
        tok,
        chat_template=CHAT,
        size_conversion={490: 4},
    )
    # The processor's class asks for 980 pixels in one piece, over what its image processor says.
    processor.images_kwargs = {"max_image_size": 490, "split_image": True}
    size, prompt = (980, 490), "<image> what is this ?"
    return fed_family(hf.AriaForConditionalGeneration, config, processor, prompt, size)


@family("kosmos-2")
def kosmos2() -> Family:
    """No image token id: a mask says where the queries go; rows are scaled inside the decoder."""

    tags = [f"<{end}{tag}>" for tag in ("image", "phrase", "object") for end in ("", "/")]
    tags += ["</doc>", "</chunk>", "</line>", "</delimiter_of_multi_objects/>", "<grounding>"]
    tok = tokenizer((*tags, *(f"<patch_index_{i:04}>" for i in range(4))))
    tok.padding_side = "left"
    config = hf.Kosmos2Config(
        text_config={
            "vocab_size": len(tok),
            "embed_dim": 32,
            "layers": 3,
            "ffn_dim": 48,
            "attention_heads": 4,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config=EYE,
        latent_query_num=6,
    )
    processor = hf.Kosmos2Processor(
        hf.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True
        ),
        tok,
        num_patch_index_tokens=4,
    )
    processor.num_image_tokens = 6
    size, prompt = (48, 32), "what is this ?"
    return fed_family(hf.Kosmos2ForConditionalGeneration, config, processor, prompt, size)


@family("granite4_vision")
def granite4_vision() -> Family:
    """Image rows enter as zeros; window queries of anyres tiles are added before layers 0 to 4."""

    tok = tokenizer(image_token="<image>")
    tok.padding_side = "left"
    pinpoints = [[32, 64], [64, 32], [64, 64]]
    config = hf.Granite4VisionConfig(
        text_config=hf.Granite4VisionTextConfig(
            **text_sizes(tok, layers=6),
            embedding_multiplier=2.0,
            residual_multiplier=0.5,
            logits_scaling=3.0,
            attention_multiplier=0.25,
        ),
        vision_config=hf.SiglipVisionConfig(
            **{**EYE, "hidden_size": 64, "num_hidden_layers": 3, "patch_size": 4}
        ),
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 48,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        deepstack_layer_map=[[-1, 0]],
        spatial_vision_layer=-2,
        spatial_target_layers=[1, 2, 3, 4],
    )
    processor = hf.Granite4VisionProcessor(
        hf.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=pinpoints,
        ),
        tok,
        patch_size=4,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        chat_template=CHAT,
    )
    size, prompt = (64, 32), "<image> what is this ?"
    kind = hf.Granite4VisionForConditionalGeneration
    return fed_family(
        kind, config, processor, prompt, size, "vision_tower.encoder.layers", "qformer.encoder"
    )
