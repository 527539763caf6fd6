"""Small random multimodal models for the tests, made in memory: no hub, no files.

Weights are drawn large enough that every part of a layer visibly moves the logits, so that a test
which compares an intervention with its oracle can fail.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPVisionConfig,
    GptOssConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

try:  # the image processor without torchvision, under the name of this transformers version
    from transformers.models.clip import CLIPImageProcessorPil as CLIPImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = (
    *"what which where is are the a an of in on it color shape letter this that and or".split(),
    *"red green blue black white circle square star cross left right top bottom user : ?".split(),
    *string.ascii_lowercase,
    *string.digits,
)
VOCABULARY = tuple(dict.fromkeys((*SPECIAL, *WORDS)))
IMAGE_ID = VOCABULARY.index("<image>")
KINDS = ("llama", "qwen2", "mistral", "vipllava")

LAYERS = 4
WIDTH = 32
PIXELS, PATCH = 32, 8
SIDE = PIXELS // PATCH
CELLS = SIDE * SIDE

CHAT = (
    "{% for message in messages %}user : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}a :{% endif %}"
)

PROMPTS = {
    "start": "<image> what is this ?",
    "middle": "the color of <image> is what ?",
    "end": "where is the star <image>",
    "two": "which <image> is red and <image> is blue ?",
    "short": "a <image> b",
}


@dataclass(frozen=True)
class Tiny:
    """A model and its processor; ``model`` is never shared between tests that wrap it."""

    model: Any
    processor: Any


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_special_tokens(list(SPECIAL))
    core.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", VOCABULARY.index("<s>"))]
    )
    return fast(core, unk_token="<unk>")


def fast(core: Tokenizer, **more: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with the special tokens of the tiny models."""
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        **more,
    )


def processor(words: PreTrainedTokenizerFast | None = None) -> LlavaProcessor:
    """The processor of the tiny models; without a chat template around another tokenizer."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}
        ),
        tokenizer=tokenizer() if words is None else words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT if words is None else None,
    )


def build(kind: str = "llama", attn_implementation: str = "sdpa", seed: int = 0) -> Tiny:
    """A random model of one kind, on the CPU in float32, in evaluation mode."""
    text = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": VOCABULARY.index("<s>"),
        "eos_token_id": VOCABULARY.index("</s>"),
        "pad_token_id": VOCABULARY.index("<pad>"),
        "tie_word_embeddings": False,
    }
    decoders = {"qwen2": Qwen2Config, "mistral": MistralConfig, "gpt_oss": GptOssConfig}
    if kind == "gpt_oss":  # learned sinks beside the keys, and windows; computes eagerly only
        text |= {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
        text |= {"sliding_window": 12}
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=PATCH,
    )
    common = {
        "vision_config": vision,
        "text_config": decoders.get(kind, LlamaConfig)(**text),
        "image_token_index": IMAGE_ID,
        "image_token_id": IMAGE_ID,
        "attn_implementation": attn_implementation,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "vipllava":
            config: Any = VipLlavaConfig(**common, vision_feature_layers=[-1, -2, -3])
            model: Any = VipLlavaForConditionalGeneration(config)
        else:
            config = LlavaConfig(
                **common, vision_feature_layer=-2, vision_feature_select_strategy="default"
            )
            model = LlavaForConditionalGeneration(config)
    _draw(model, seed)
    return Tiny(model.eval(), processor())


def _draw(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_((0.0 if name.endswith("bias") else 1.0) + 0.1 * noise)
            elif "embed" in name:
                weight.copy_(noise * 0.7)
            else:
                weight.copy_(noise * 1.1 / weight[0].numel() ** 0.5)
            # The tower mixes cells only a little: a token then shows the pixels of its own cell.
            if "vision" in name and ("out_proj" in name or "fc2" in name):
                weight.mul_(0.2)


def image(seed: int, size: tuple[int, int] = (PIXELS, PIXELS)) -> Image.Image:
    """Noise in big cells, so that resizing does not wash it out; ``size`` is (width, height)."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)
