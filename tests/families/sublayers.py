"""Which submodules of a family's layers mix tokens and which are the FFN, as found by hand."""

from __future__ import annotations

from typing import Any

# What is added to the residual stream, as measured for transformers 5.23 by hand.
ADDENDS = {
    "gemma3": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "gemma4": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "paligemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
    "glm4v": ("post_self_attn_layernorm", "post_mlp_layernorm"),
    "llama4": ("self_attn", "feed_forward"),
    "blip-2": ("self_attn", "fc2"),
    "kosmos-2": ("self_attn", "ffn"),
    **dict.fromkeys(
        "llava llava_next llava_onevision video_llava vipllava qwen2_vl qwen2_5_vl qwen3_vl "
        "internvl paligemma idefics3 smolvlm mistral3 pixtral aya_vision molmo2 aria "
        "granite4_vision kimi_k25 phi4_multimodal".split(),
        ("self_attn", "mlp"),
    ),
}


# Which submodule mixes tokens and which is the FFN, where layers of one model differ.
MIXED = {
    "qwen3_5": (("linear_attn", "self_attn"), ("mlp",)),
    "qwen3_5_moe": (("linear_attn", "self_attn"), ("mlp",)),
    "lfm2_vl": (("conv", "self_attn"), ("feed_forward",)),
}


KNOWN = {**{n: ((a,), (f,)) for n, (a, f) in ADDENDS.items()}, **MIXED}


# Families whose sublayers are where another one has them.
LIKE = {
    "emu3": "llava",
    "gemma4-moe": "gemma4",
    "gemma4_unified": "gemma4",
    "llava_onevision_shrunk": "llava",
    "qwen3_vl_moe": "qwen3_vl",
}


def child(layer: Any, names: tuple[str, ...]) -> Any:
    return next(module for n in names if (module := getattr(layer, n, None)) is not None)
