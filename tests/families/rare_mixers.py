"""Families nobody looked at while the package was written: token mixers unlike all others.

State spaces and convolutions carry an image onwards without a key that could be masked, sparse
attention chooses its own keys, and a layer may have one part only.
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
    START,
    TEXT,
    by_hand,
    pixels,
    prompt,
)
from families.family import Family, family


@family("nemotron_h_omni")
def nemotron_h_omni() -> Family:
    """One mixer per layer: state space, experts, attention or feed-forward, never two."""
    from transformers.models.nemotron_h_omni import modeling_nemotron_h_omni as modeling

    text = {
        **TEXT,
        "model_type": "nemotron_h",
        "layers_block_type": ("linear_attention moe full_attention mlp linear_attention").split(),
        "head_dim": 8,
        "ssm_state_size": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "moe_shared_expert_intermediate_size": 16,
        **EXPERTS,
    }
    text.pop("num_hidden_layers")
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text,
        vision_config={
            "model_type": "radio",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "mlp_ratio": 2.0,
            "patch_size": 4,
            "image_size": 32,
            "max_img_size": 64,
            "num_cls_tokens": 1,
            "num_registers": 1,
            "video_temporal_patch_size": 2,
            "torch_dtype": "float32",
        },
        vision_hidden_size=24,
        projector_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=93,
    )
    inputs = prompt(6, pixel_values=pixels(24, 48), image_grid_hw=GRID[:, 1:])
    return by_hand(lambda: modeling.NemotronH_Omni_Reasoning_V3(config), inputs)


@family("mistral_large4")
def mistral_large4() -> Family:
    """Layers that borrow keys and values from earlier ones, and return a tuple."""

    config = hf.MistralLarge4Config(
        text_config={
            **TEXT,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "qk_nope_head_dim": 4,
            "index_topk": 8,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "kv_source_layers": [0, 0, 2, 3],
            **EXPERTS,
        },
        vision_config={**EYE, "model_type": "pixtral", "patch_size": 4, "image_size": 32},
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    inputs = prompt(6, pixel_values=pixels(1, 3, 16, 24), image_sizes=torch.tensor([[16, 24]]))
    return by_hand(lambda: hf.MistralLarge4ForConditionalGeneration(config), inputs)


@family("minimax_m3_vl")
def minimax_m3_vl() -> Family:
    """Block-sparse attention and a mixture of experts."""

    config = hf.MiniMaxM3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "rotary_dim": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "dense_intermediate_size": 48,
            "shared_intermediate_size": 16,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 4,
            "index_topk_blocks": 2,
            "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        },
        vision_config={**EYE, "image_size": 32, "patch_size": 4},
        image_token_index=IMAGE,
        video_token_index=93,
        projector_hidden_size=32,
    )
    inputs = prompt(6, pixel_values=pixels(24, 96), image_grid_thw=GRID)
    return by_hand(lambda: hf.MiniMaxM3SparseForConditionalGeneration(config), inputs)


@family("lfm3_vl")
def lfm3_vl() -> Family:
    """Convolutions and gated attention between sandwich norms, video under the image's grids."""

    config = hf.Lfm3VlConfig(
        text_config={
            **TEXT,
            "model_type": "lfm3",
            "head_dim": 8,
            "sliding_window": 8,
            "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv", "sliding_attention"],
        },
        vision_config={**EYE, "patch_size": 4, "num_key_value_heads": 2},
        image_token_id=IMAGE,
        video_token_id=93,
        vision_start_token_id=START,
        vision_end_token_id=END,
        projector_hidden_size=32,
    )
    inputs = prompt(6, pixel_values=pixels(24, 96), image_grid_thw=GRID)
    return by_hand(
        lambda: hf.Lfm3VlForConditionalGeneration(config), inputs, calm=("vision_tower.layers",)
    )
