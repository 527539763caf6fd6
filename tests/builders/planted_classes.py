"""A LLaVA around a given language model in which every visual token is planted.

A patch's red and green say which vector of a table its token is, its blue which noise is added.
So what every token is, and how it differs between images, is known exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from embedlens import TokenClasses, VisualLM

try:  # the image processor without torchvision, under the name of this transformers version
    from transformers.models.clip import CLIPImageProcessorPil as CLIPImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor

PATCH, GRID = 14, 8
CELLS = GRID * GRID
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Registers(nn.Module):
    """Stands where the tower's first norm is: some of the planted tokens get a large norm."""

    def __init__(self, loud: Collection[int]) -> None:
        super().__init__()
        self.loud = torch.tensor(sorted(loud))

    def forward(self, patches: Tensor) -> Tensor:
        states = patches.clone()
        states[..., 3] = 3.0
        states[..., 4] = 60.0 * torch.isin(_index(states), self.loud)
        return states


class Table(nn.Module):
    """Stands where the projector is: looks the vector up and adds the noise of the patch."""

    def __init__(self, vectors: Tensor, noise: float) -> None:
        super().__init__()
        self.vectors, self.noise = vectors, noise
        draw = torch.Generator().manual_seed(0)
        self.draws = torch.randn(256, vectors.shape[1], generator=draw) / vectors.shape[1] ** 0.5

    def forward(self, features: Tensor) -> Tensor:
        rows = self.vectors[_index(features) % len(self.vectors)]
        drawn = self.draws[(features[..., 2] * 255).round().long()]
        return rows + self.noise * rows.norm(dim=-1, keepdim=True) * drawn


def _index(features: Tensor) -> Tensor:
    red, green = ((features[..., i] * 255).round().long() for i in (0, 1))
    return red + 256 * green


def picture(indices: NDArray[np.int64], seed: int) -> Image.Image:
    """An image whose tokens are these rows of the table, with noise drawn by ``seed``."""
    noise = np.random.default_rng(seed).integers(0, 256, CELLS)
    cells = np.stack([indices % 256, indices // 256, noise], axis=1).astype(np.uint8)
    pixels = cells.reshape(GRID, GRID, 3).repeat(PATCH, 0).repeat(PATCH, 1)
    return Image.fromarray(pixels)


def planted_model(
    decoder: LlamaModel,
    tokenizer: Any,
    vectors: Tensor,
    *,
    head: Tensor | None = None,
    template: str = TEMPLATE,
    noise: float = 0.2,
    loud: Collection[int] = (),
) -> VisualLM:
    """A LLaVA of this decoder; ``vectors`` are the table, ``[row, d]``.

    Args:
        decoder: Its weights are shared, not copied.
        tokenizer: A copy is used.
        vectors: What a visual token can be.
        head: Weights of the head; the embeddings when None.
        template: For chats.
        noise: Norm of what is added to each token, as a share of its own.
        loud: Rows that the vision tower gives a norm of 60 in place of 3.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if "<image>" not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = decoder.config.to_dict()
    text |= {"vocab_size": max(len(tokenizer), text["vocab_size"])}
    config = LlavaConfig(
        text_config=text,
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            image_size=PATCH * GRID, patch_size=PATCH,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=CELLS,
        tie_word_embeddings=head is None,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    weights = dict(decoder.state_dict())
    words = weights.pop("embed_tokens.weight")
    model.model.language_model.load_state_dict(weights, strict=False, assign=True)
    model.get_input_embeddings().weight.data.zero_()[: len(words)] = words
    model.lm_head.weight.data.zero_()[: len(words)] = words if head is None else head
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    with torch.no_grad():
        patches = tower.embeddings.patch_embedding.weight.zero_()
        for channel in range(3):
            patches[channel, channel] = 1 / PATCH**2
        tower.embeddings.position_embedding.weight.zero_()
    tower.pre_layrnorm = Registers(loud)
    model.model.multi_modal_projector = Table(vectors, noise)
    size = PATCH * GRID
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=0,
            do_normalize=False, do_rescale=True, rescale_factor=1 / 255,
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=template,
    )  # fmt: skip
    return VisualLM(model.requires_grad_(False), processor, name="planted")


@dataclass(frozen=True)
class Planting:
    """What a table's rows are, and images that show them.

    Attributes:
        vectors: The table, ``[row, d]``: first what recurs, then what does not.
        classes: Of the rows that recur, the class.
        cells: How many cells of an image each of them gets, one class after another.
    """

    vectors: Tensor
    classes: tuple[str, ...]
    cells: tuple[int, ...]

    def rows(self, seed: int) -> NDArray[np.int64]:
        """The rows that an image shows, ``[cell]``; what does not recur is drawn."""
        draw = np.random.default_rng(seed)
        shown = draw.integers(len(self.classes), len(self.vectors), CELLS)
        recurring = np.repeat(np.arange(len(self.classes)), self.cells)
        shown[draw.permutation(CELLS)[: len(recurring)]] = recurring
        return shown

    def images(self, seeds: Collection[int]) -> list[Image.Image]:
        """One image per seed."""
        return [picture(self.rows(seed), seed) for seed in seeds]

    def truth(self, seeds: Collection[int]) -> NDArray[np.str_]:
        """The class of every visual token of these images."""
        named = np.array([*self.classes, "alive"])
        shown = np.concatenate([self.rows(seed) for seed in seeds])
        return named[np.minimum(shown, len(self.classes))]

    @property
    def loud(self) -> list[int]:
        """Rows that the tower gives a large norm."""
        return [i for i, name in enumerate(self.classes) if name == "vit-sink"]


def labels(classes: TokenClasses) -> NDArray[np.str_]:
    """The finest name of every token's class."""
    found = np.full(len(classes), "alive", dtype="<U8")
    for name in ("common", "dead", "llm-sink", "vit-sink"):
        found[classes.mask(name)] = name
    return found
