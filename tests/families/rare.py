"""Families nobody looked at while the package was written: residual streams unlike all others.

An adapter can be tuned to the families it is tested on without anybody noticing. Where a layer does
not add its parts to what came in, ``output - input`` is not what attention and feed-forward wrote.
"""

from __future__ import annotations

import torch
import transformers as hf

from families.byhand import (
    END,
    EXPERTS,
    EYE,
    GRID,
    IMAGE,
    QWEN_EYE,
    START,
    TEXT,
    by_hand,
    pixels,
    prompt,
)
from families.family import Family, family


@family("inkling_mm_model")
def inkling() -> Family:
    """Short convolutions behind each sublayer: the addend is the output of the convolution."""

    config = hf.InklingConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "sliding_window_size": 8,
            "d_rel": 4,
            "rel_extent": 16,
            "local_layer_ids": [0, 2],
            "dense_mlp_idx": 1,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "logits_mup_width_multiplier": 2.0,
            **EXPERTS,
        },
        vision_config={
            "patch_size": 8,
            "temporal_patch_size": 2,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 8},
        image_token_id=IMAGE,
        audio_token_id=93,
        image_bos_token_id=START,
        audio_bos_token_id=94,
    )
    inputs = prompt(6, pixel_values=pixels(6, 2, 8, 8, 3))
    return by_hand(lambda: hf.InklingForConditionalGeneration(config), inputs)


@family("inkling2")
def inkling2() -> Family:
    """Residual by attention over earlier blocks: at a boundary a layer's input is not added."""

    text = {
        **TEXT,
        "head_dim": 8,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "sliding_window_size": 8,
        "d_rel": 4,
        "rel_extent": 16,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
        "n_routed_experts": 4,
        "n_layers_per_attn_res_block": 2,
        "unpadded_vocab_size": 96,
        **EXPERTS,
    }
    text.pop("intermediate_size")
    config = hf.Inkling2Config(
        text_config=text,
        vision_config={
            **EYE,
            "patch_size": 4,
            "posemb_grid_size": 8,
            "projection_hidden_dim": 32,
            "text_hidden_size": 32,
        },
        image_token_id=IMAGE,
    )
    inputs = prompt(6, pixel_values=pixels(6, 8, 8, 3), image_grid_thw=torch.tensor([[1, 2, 3]]))
    return by_hand(lambda: hf.Inkling2ForConditionalGeneration(config), inputs)


@family("muse_spark")
def muse_spark() -> Family:
    """A learned gate mixes residual and addend; logits are scaled, then capped."""

    config = hf.MuseSparkConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "sliding_window": 8,
            "num_local_experts": 4,
            "moe_hidden_size": 16,
            "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
            **EXPERTS,
        },
        vision_config={**EYE, "patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4},
        audio_config={
            "patch_sizes": [2],
            "hidden_sizes": [8],
            "depths": [1],
            "num_hidden_layers": 1,
            "out_hidden_size": 32,
        },
        out_hidden_size=4 * 32,
        projector_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=93,
        audio_token_id=94,
    )
    inputs = prompt(6, pixel_values=pixels(24, 96), image_grid_thw=GRID)
    return by_hand(lambda: hf.MuseSparkForConditionalGeneration(config), inputs)


@family("qwen4_exp")
def qwen4_exp() -> Family:
    """Hyper-connections: the stream between layers is several streams side by side."""

    text = {
        **TEXT,
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "hc_count": 2,
        "hc_lowrank": 8,
        "ple_layer_ids": [2],
        "ple_embed_dim": 16,
        "ngram_size": 2,
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 1.0,
        },
        **EXPERTS,
    }
    text.pop("intermediate_size")
    config = hf.Qwen4ExpConfig(
        text_config=text,
        vision_config={**QWEN_EYE, "num_position_embeddings": 16},
        image_token_id=IMAGE,
        video_token_id=93,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    inputs = prompt(6, pixel_values=pixels(24, 96), image_grid_thw=GRID)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return by_hand(lambda: hf.Qwen4ExpForConditionalGeneration(config), inputs)


@family("glm5_next")
def glm5_next() -> Family:
    """Four-dimensional stream of hyper-connections; layers return a tuple with indices."""

    config = hf.Glm5NextConfig(
        text_config={
            **TEXT,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "v_head_dim": 8,
            "qk_nope_head_dim": 8,
            "index_topk": 8,
            "index_kpool": 2,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "hc_mult": 2,
            "hc_sinkhorn_iters": 3,
            **EXPERTS,
        },
        vision_config={
            **QWEN_EYE,
            "image_size": 32,
            "projection_intermediate_size": 32,
        },
        image_token_id=IMAGE,
        video_token_id=93,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=94,
        video_end_token_id=95,
    )
    inputs = prompt(6, pixel_values=pixels(24, 96), image_grid_thw=GRID)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return by_hand(lambda: hf.Glm5NextForConditionalGeneration(config), inputs)


@family("cohere_compass")
def cohere_compass() -> Family:
    """Parallel blocks and features added between layers at once."""

    config = hf.CohereCompassConfig(
        text_config={
            **TEXT,
            "sliding_window": 8,
            "logit_scale": 0.25,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 1, 1],
                },
                "full_attention": None,
            },
        },
        vision_config={
            **QWEN_EYE,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=IMAGE,
        video_token_id=93,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    inputs = prompt(6, pixel_values=pixels(24, 96), image_grid_thw=GRID)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return by_hand(lambda: hf.CohereCompassForConditionalGeneration(config), inputs)
