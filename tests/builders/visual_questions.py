"""A tiny random model with layers that add next to nothing, and its prompt as plain inputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import tiny
from embedlens import Example, VisualLM

PROMPT = "what is this ?"


def with_idle_layers(layers: Sequence[int], share: float = 1e-3) -> tuple[VisualLM, Any]:
    """A model in which these layers add this share of what they would, and a plain copy."""
    built = tiny.build()
    with torch.no_grad():
        for i in layers:
            layer = built.model.model.language_model.layers[i]
            layer.self_attn.o_proj.weight.mul_(share)
            layer.mlp.down_proj.weight.mul_(share)
    plain = copy.deepcopy(built.model)
    return VisualLM(built.model, built.processor), plain


def asked(n: int) -> list[Example]:
    return [Example(tiny.image(i), PROMPT) for i in range(n)]


def plain_inputs(seed: int) -> tuple[dict[str, Any], Tensor]:
    """What the model takes for one image, and where its visual tokens are."""
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    processor = tiny.processor()
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = dict(processor(text=text, images=tiny.image(seed), return_tensors="pt"))
    inputs.pop("mm_token_type_ids", None)
    return inputs, inputs["input_ids"] == tiny.IMAGE_ID


def divergence(clean: Tensor, other: Tensor) -> float:
    """KL of two rows of logits, in nats."""
    p, q = clean.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())
