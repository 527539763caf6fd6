"""Families nobody looked at whose inputs are unlike the others: where is the image in the prompt?

Code that trusts one image token id reads a word as an image here, a separator as a patch, or finds
no image at all.
"""

from __future__ import annotations

import torch
import transformers as hf

from families.byhand import END, EXPERTS, EYE, GRID, IMAGE, START, TEXT, by_hand, pixels, prompt
from families.family import Family, family


@family("git")
def git() -> Family:
    """The image is put before the text inside the model: the prompt has no place for it."""

    config = hf.GitConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        vision_config={**EYE, "image_size": 16, "patch_size": 8},
    )
    ids = torch.tensor([[1, 20, 30, 31, 32]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(1, 3, 16, 16),
    }
    return by_hand(lambda: hf.GitForCausalLM(config), inputs)


@family("step3p7")
def step3p7() -> Family:
    """Local tiles stand before the whole image; query heads and windows differ by layer."""

    config = hf.Step3p7Config(
        text_config={
            **TEXT,
            "head_dim": 8,
            "sliding_window": 8,
            "num_local_experts": 4,
            "n_routed_experts": 4,
            "share_expert_dim": 16,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "num_sliding_attention_heads": 8,
            "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
            **EXPERTS,
        },
        vision_config={**EYE, "image_size": 32, "patch_size": 4, "max_position_embeddings": 64},
        image_token_id=IMAGE,
    )
    tile, whole = [94, *[IMAGE] * 4, 95], [START, *[IMAGE] * 4, END]
    ids = torch.tensor([[1, 20, *tile, *tile, *whole, 30, 31, 32]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(1, 3, 32, 32),
        "pixel_values_local": pixels(2, 3, 32, 32),
        "num_local_patches": torch.tensor([2]),
    }
    return by_hand(lambda: hf.Step3p7ForConditionalGeneration(config), inputs)


@family("hunyuan_vl")
def hunyuan_vl() -> Family:
    """Rows end in a newline and the image in two marks, all under the image's own id."""

    config = hf.HunYuanVLConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "factor": 1.0,
                "alpha": 1.0,
                "mrope_section": [1, 1, 1, 1],
            },
        },
        vision_config={
            **EYE,
            "patch_size": 4,
            "out_hidden_size": 32,
            "text_hidden_size": 32,
            "max_image_size": 32,
            "min_image_size": 8,
            "img_max_token_num": 64,
        },
        image_token_id=IMAGE,
        im_start_id=START,
        im_end_id=END,
        im_newline_id=93,
    )
    inputs = prompt(10, pixel_values=pixels(24, 48), image_grid_thw=GRID)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return by_hand(lambda: hf.HunYuanVLForConditionalGeneration(config), inputs)


@family("kosmos-2.5")
def kosmos2_5() -> Family:
    """A mask with -1 beside the image: true, but not a place; the ids under it are those of <s>."""

    config = hf.Kosmos2_5Config(
        text_config={
            "vocab_size": 96,
            "embed_dim": 32,
            "layers": 3,
            "ffn_dim": 48,
            "attention_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
        },
        vision_config={
            **EYE,
            "patch_embed_hidden_size": 48,
            "head_dim": 8,
            "max_num_patches": 32,
        },
        latent_query_num=6,
    )
    ids = torch.tensor([[1, START, *[1] * 6, END, 30, 31, 32]])
    rows, columns = torch.meshgrid(torch.arange(1, 5), torch.arange(1, 7), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    inputs = {
        "flattened_patches": torch.cat([places, pixels(24, 48)], dim=1)[None],
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_embeds_position_mask": torch.tensor([[0, -1, *[1] * 6, -1, 0, 0, 0]]),
    }
    return by_hand(lambda: hf.Kosmos2_5ForConditionalGeneration(config), inputs)


@family("gemma4_unified")
def gemma4_unified() -> Family:
    """No vision tower: patches are projected straight into scaled text space, both ways visible."""

    config = hf.Gemma4UnifiedConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "final_logit_softcapping": 5.0,
        },
        vision_config={
            "patch_size": 2,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 24,
            "mm_posemb_size": 16,
            "output_proj_dims": 24,
        },
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=93,
        boi_token_id=START,
        eoi_token_id=END,
        boa_token_id=94,
        eoa_token_index=95,
        audio_token_id=89,
    )
    rows, columns = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=1)
    padding = torch.full((2, 2), -1)
    inputs = prompt(
        6, pixel_values=pixels(1, 8, 48), image_position_ids=torch.cat([places, padding])[None]
    )
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return by_hand(lambda: hf.Gemma4UnifiedForConditionalGeneration(config), inputs)


@family("minicpmv4_6")
def minicpmv4_6() -> Family:
    """Whole image first, then slices of other sizes, all packed into one strip of patches."""

    config = hf.MiniCPMV4_6Config(
        text_config={
            **TEXT,
            "model_type": "qwen3_5_text",
            "head_dim": 8,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
        vision_config={**EYE, "image_size": 32, "patch_size": 4, "insert_layer_id": 0},
        insert_layer_id=0,
        image_token_id=IMAGE,
        video_token_id=93,
    )
    sizes = torch.tensor([[8, 8], [4, 12], [4, 12]], dtype=torch.int32)
    whole, slices = [START, *[IMAGE] * 4, END], [94, *[IMAGE] * 3, 95]
    ids = torch.tensor([[1, 20, *whole, *slices, 40, *slices, 30, 31, 32]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(1, 3, 4, 4 * int(sizes.prod(-1).sum())),
        "target_sizes": sizes,
    }
    return by_hand(lambda: hf.MiniCPMV4_6ForConditionalGeneration(config), inputs)


@family("deepseek_ocr2")
def deepseek_ocr2() -> Family:
    """144 queries of a causal encoder per view, then one separator, under the image's own id."""

    config = hf.DeepseekOcr2Config(
        text_config={
            **TEXT,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            **EXPERTS,
        },
        vision_config={
            "sam_config": {
                "hidden_size": 24,
                "output_channels": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 4,
                "window_size": 4,
                "global_attn_indexes": [1],
                "mlp_dim": 32,
                "downsample_channels": [24, 32],
            },
            "encoder_config": {**EYE, "num_key_value_heads": 2, "vocab_size": 8},
        },
        image_token_id=IMAGE,
    )
    inputs = prompt(145, pixel_values=pixels(1, 3, 32, 32))
    return by_hand(lambda: hf.DeepseekOcr2ForConditionalGeneration(config), inputs)


@family("t5gemma2")
def t5gemma2() -> Family:
    """Encoder-decoder with an image token id: the visual rows stand in the encoder."""

    text = {
        **TEXT,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    config = hf.T5Gemma2Config(
        encoder={
            "text_config": text,
            "vision_config": {
                **EYE,
                "model_type": "siglip_vision_model",
                "image_size": 16,
                "patch_size": 4,
                "vision_use_head": False,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
        },
        decoder=text,
        image_token_index=IMAGE,
        eoi_token_index=END,
    )
    inputs = prompt(4, pixel_values=pixels(1, 3, 16, 16))
    inputs["decoder_input_ids"] = torch.tensor([[1, 5]])
    return by_hand(lambda: hf.T5Gemma2ForConditionalGeneration(config), inputs)
