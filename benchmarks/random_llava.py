"""A LLaVA of random weights for the benchmarks: width 512, 12 layers, 576 visual of 631 tokens.

What is measured on it is work, which does not depend on the weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from embedlens import Batch, TokenClasses, VisualLM

TOKENS, BEFORE, SIDE, PATCH = 631, 35, 24, 14
IMAGE_ID, WORDS = 3, 1000
DEAD_SHARE = 0.45


@dataclass(frozen=True)
class Setup:
    """One model twice, and one prompt.

    Attributes:
        model: As embedlens runs it.
        plain: A copy that nothing has touched.
        inputs: Tensors of one prompt with an image.
        batch: The same as a batch, 45 % of its visual tokens called dead.
    """

    model: VisualLM
    plain: Any
    inputs: dict[str, Tensor]
    batch: Batch

    def clean(self) -> Tensor:
        """Last logits of a plain forward of transformers, with whatever hooks are on it."""
        with torch.no_grad():
            out = self.plain(**self.inputs, use_cache=False, logits_to_keep=1)
        logits: Tensor = out.logits[:, -1]
        return logits

    @property
    def dead(self) -> Tensor:
        """Positions of the dead tokens, ``[selected]``."""
        assert self.batch.classes is not None
        return torch.tensor(self.batch.visual.position[self.batch.classes.mask("dead")])


def setup(
    *,
    tower_width: int = 64,
    tower_layers: int = 2,
    layers: int = 12,
    width: int = 512,
    side: int = SIDE,
) -> Setup:
    """The model and its batch; 12 layers and a small vision tower unless asked for otherwise.

    ``side`` is that of the square of visual tokens.
    """
    made = _model(tower_width, tower_layers, layers, width, side)
    plain = copy.deepcopy(made)
    inputs = _inputs(side)
    model = VisualLM(made)
    batch = model.batch(inputs)
    dead = np.zeros(len(batch.visual), bool)
    count = round(DEAD_SHARE * len(dead))
    dead[np.random.default_rng(0).choice(len(dead), count, replace=False)] = True
    none = np.zeros(len(dead), bool)
    batch = batch.with_classes(TokenClasses({"vit-sink": none, "llm-sink": none, "dead": dead}))
    return Setup(model, plain, inputs, batch)


def _model(tower_width: int, tower_layers: int, layers: int, width: int, side: int) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=tower_width,
        intermediate_size=2 * tower_width if tower_width < 512 else 4 * tower_width,
        num_hidden_layers=tower_layers,
        num_attention_heads=max(2, tower_width // 64),
        image_size=side * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=43 * width // 16,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    model: Any = LlavaForConditionalGeneration(config)
    return model.eval()


def _inputs(side: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = TOKENS - SIDE * SIDE + side * side
    ids = torch.randint(10, WORDS, (1, tokens), generator=generator)
    ids[:, BEFORE : BEFORE + side * side] = IMAGE_ID
    pixels = torch.randn(1, 3, side * PATCH, side * PATCH, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
