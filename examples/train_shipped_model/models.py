"""The architecture: a LLaVA of under six million parameters, with every part of a real one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from packing import Packed
from tokens import BOS, EOS, IMAGE, PAD, VISUAL_TOKENS
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from embedlens.lens.scenes import IMAGE_SIZE, PATCH_SIZE, VOCABULARY

WIDTH, VISION_WIDTH = 192, 160
# The usual 0.02 is far too small for this width, and word embeddings that small are drowned by
# whatever the first layer adds.
SPREAD, EMBEDDING_SPREAD = 0.06, 0.7
# On CPU the fused kernel's backward pass with a mask costs half of a step; plain matrices win.
ATTENTION = "eager"


def text_config() -> LlamaConfig:
    """Eight Llama layers."""
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        initializer_range=SPREAD,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        attn_implementation=ATTENTION,
    )


def vision_config() -> CLIPVisionConfig:
    """Five CLIP layers over 8 × 8 patches; the last but one feeds the projector."""
    return CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=5,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=VISION_WIDTH,
        attn_implementation=ATTENTION,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fresh weights drawn inside depend on the seed only; nothing outside notices."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - initialisers know no other generator
        yield


def language_model() -> Any:
    """A fresh decoder."""
    model: Any = LlamaForCausalLM(text_config())
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, EMBEDDING_SPREAD)
    return model


def predict(language: Any, head: Any, embedded: Tensor, packed: Packed) -> Tensor:
    """Logits `[document, token, word]` for embedded tokens."""
    return predict_and_read(language, head, embedded, packed)[0]


def predict_and_read(
    language: Any, head: Any, embedded: Tensor, packed: Packed, layer: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Logits, and the states `[document, token, d]` that enter a layer."""
    out = language(
        inputs_embeds=embedded,
        attention_mask=packed.mask,
        position_ids=packed.positions,
        use_cache=False,
        output_hidden_states=layer is not None,
    )
    logits: Tensor = head(out.last_hidden_state)
    return logits, None if layer is None else out.hidden_states[layer]


def vision_model() -> CLIPVisionModel:
    """A fresh vision tower."""
    return CLIPVisionModel(vision_config())


def multimodal_model() -> LlavaForConditionalGeneration:
    """Tower, two-layer projector and decoder in one, all fresh."""
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config(),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL_TOKENS,
        projector_hidden_act="gelu",
        attn_implementation=ATTENTION,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


def compiled(language: Any, wanted: bool) -> Any:
    """The decoder, compiled where it lies on a CPU with a compiler: half the time per step."""
    able = language.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is not None
    return torch.compile(language, dynamic=False) if wanted and able else language


def patch_features(tower: Any, pixels: Tensor) -> Tensor:
    """States of the last layer but one, the class token first: `[image, 1 + patch, d]`."""
    states: Tensor = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        states = layer(states, attention_mask=None)
    return states


def pooled(tower: Any, states: Tensor) -> Tensor:
    """The class token after the last layer, `[image, d]`."""
    last = tower.encoder.layers[-1](states, attention_mask=None)
    seen: Tensor = tower.post_layernorm(last[:, 0])
    return seen
