"""How one layer's attention takes its mask, and what stands for a mask it is not given.

A layer that mixes tokens by a convolution or a running state has no keys that could be hidden, so
what was blocked elsewhere would leak through it: it is refused.
"""

from __future__ import annotations

from typing import Any

from ...lens.errors import Unsupported
from ..program.scope import Subject

# How each implementation takes a mask: True for boolean, False for added to the scores.
BOOLEAN = {"sdpa": True, "eager": False}
# Kinds of attention over a window of keys, and where its width is said.
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def mask_kind(by: str, model: Subject, layer: int) -> dict[str, Any]:
    """Whether a layer's mask is boolean, its attention causal, and over which window (0: none)."""
    anatomy = model.anatomy
    anatomy.require(f"knockout:{layer}")
    path = anatomy.mixer[layer]
    if path is None:
        raise Unsupported(
            f"{by}: it is not known which module of layer {layer} receives its mask over "
            "keys, so attention cannot be blocked there"
        )
    mixer = model.hf.get_submodule(path)
    config: Any = getattr(mixer, "config", None)
    implementation = getattr(config, "_attn_implementation", None) or model.attn_implementation
    if implementation not in BOOLEAN:
        raise Unsupported(
            f"{by}: masks of attn_implementation={implementation!r} cannot be edited; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )
    name = WINDOWS.get(anatomy.mixer_kinds[layer])
    text = model.hf.config.get_text_config(decoder=True)
    return {
        "boolean": BOOLEAN[implementation],
        "causal": bool(getattr(mixer, "is_causal", True)),
        "window": int(getattr(text, name, None) or 0) if name else 0,
    }
