"""What a tiny model of one family is, and the parts all of them are built from.

Each family's module registers builders: real classes of transformers, tiny random weights, a real
processor wherever one can be made without a hub. Nothing in the package knows these names.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

BASIC = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = (
    *"what which where is are the a an of in on it color shape letter this that and or".split(),
    *"red green blue black white circle square star cross left right top bottom user : ?".split(),
    *string.ascii_lowercase,
    *string.digits,
)


@dataclass(frozen=True)
class Family:
    """One tiny model with all it takes to feed it.

    Attributes:
        model: Random float32 weights, evaluation mode.
        processor: The family's own processor, or None where it cannot be made here.
        prompt: A prompt for one image, with the placeholder where the processor wants one.
        inputs: Tensors of one image and the prompt, ready for ``model(**inputs)``.
        size: A (width, height) of images that suits the family; not square where it may differ.
        why_no_processor: What is missing, when there is no processor.
    """

    model: Any
    processor: Any
    prompt: str
    inputs: Mapping[str, torch.Tensor]
    size: tuple[int, int] = (64, 64)
    why_no_processor: str = ""


FAMILIES: dict[str, Callable[[], Family]] = {}
# Between them every trait that a family can have: what plain `pytest` runs.
REPRESENTATIVE = (
    *("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "paligemma", "idefics3", "llama4"),
    *("gemma4", "molmo2", "qwen3_5", "granite4_vision", "chameleon", "blip-2", "nemotron_h_omni"),
)


def family(name: str) -> Callable[[Callable[[], Family]], Callable[[], Family]]:
    """Register the builder of a family under its ``model_type`` (with a suffix for variants)."""

    def register(build: Callable[[], Family]) -> Callable[[], Family]:
        assert name not in FAMILIES, name
        FAMILIES[name] = build
        return build

    return register


def tokenizer(special: Sequence[str] = (), **named: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: ``special`` are single tokens, ``named`` extra_special_tokens."""
    tokens = tuple(dict.fromkeys((*BASIC, *special, *named.values(), *WORDS)))
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(tokens)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=dict(named),
    )
    # Special tokens are found inside running text, as real tokenizers find them.
    made.add_tokens([*special, *named.values()], special_tokens=True)
    return made


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An RGB image of (width, height) in which every pixel differs."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def random_model(make: Callable[[], Any], seed: int = 0, calm: Sequence[str] = ()) -> Any:
    """``make()`` with weights drawn large enough that every part of a layer moves the logits.

    Freshly initialised transformers models barely move the residual stream: a test that compares
    an intervention with its oracle on them could not fail.

    Args:
        make: Constructs the model.
        seed: Of the weights, which are the same in every run.
        calm: Parts of the names of matrices drawn a fifth as large: output projections of the
            vision tower, so that a visual token still shows mostly the pixels of its own cell.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().float().eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim <= 1:
                weight.add_(0.1 * drawn)
            elif "embed" in name:
                weight.copy_(drawn * 0.7)
            else:
                fan_in = weight[0].numel() if weight.ndim in (2, 4, 5) else weight.shape[-1]
                weight.copy_(drawn * 1.1 / fan_in**0.5)
            if weight.ndim > 1 and any(part in name for part in calm):
                weight.mul_(0.2)
    return model
