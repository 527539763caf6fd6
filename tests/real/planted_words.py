"""A LLaVA around the real language model whose visual tokens are rows of a table.

The brightness of a patch says which row. The tower hands brightness on, untouched, and the
projector looks the row up, so what every visual token carries is known.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tiny import CLIPImageProcessor

PATCH, SIDE = 14, 3
CELLS = SIDE * SIDE
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Greece": "Athens",
    "China": "Beijing",
}
COUNTRIES = tuple(CAPITALS)
QUESTION = "Question: What is the capital of<image>?\nAnswer: The capital is the city of"
"""The real model answers it rightly for every country that is planted in the image."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in "
    "message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class LookUp(nn.Module):
    """The row of a table that a patch's brightness names, from the first again behind the last."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)  # a parameter would be taken for learned queries

    def forward(self, features: Tensor) -> Tensor:
        return self.table[(features[..., 0] * 255).round().long() % len(self.table)]


def planted(
    language: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, table: Tensor
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A model of its own and its processor; ``table`` is ``[row, d]``, 256 rows at most."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    rows = language.config.vocab_size
    vision = CLIPVisionConfig(
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=PATCH * SIDE,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**{**language.config.to_dict(), "vocab_size": rows + 64}),
        image_token_index=image_id,
        vision_feature_layer=-2,  # what enters the tower's one layer
        vision_feature_select_strategy="default",
        image_seq_length=CELLS,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    _brightness_only(model.model.vision_tower)
    model.model.multi_modal_projector = LookUp(table.clone())
    weights = language.model.state_dict()
    words = weights.pop("embed_tokens.weight")
    missing, unexpected = model.model.language_model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["embed_tokens.weight"], [])
    with torch.no_grad():
        model.get_input_embeddings().weight[:rows] = words
        model.get_input_embeddings().weight[rows:] = 0
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    side = {"height": PATCH * SIDE, "width": PATCH * SIDE}
    images = CLIPImageProcessor(
        size=side, crop_size=side, resample=0, do_normalize=False, do_center_crop=False
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT,
    )
    return model, processor


def _brightness_only(tower: nn.Module) -> None:
    """Make the tower hand on, as its first feature, the mean of a patch's pixels."""
    inner = getattr(tower, "vision_model", tower)
    with torch.no_grad():
        inner.embeddings.patch_embedding.weight.zero_()
        inner.embeddings.patch_embedding.weight[0] = 1 / (3 * PATCH**2)
        inner.embeddings.position_embedding.weight.zero_()
    inner.pre_layrnorm = nn.Identity()


def picture(rows: Sequence[int]) -> Image.Image:
    """An image whose patches, row by row, name these rows of the table."""
    cells = np.array(rows, dtype=np.uint8).reshape(SIDE, SIDE)
    return Image.fromarray(cells.repeat(PATCH, 0).repeat(PATCH, 1)).convert("RGB")


def showing(*countries: int) -> list[Image.Image]:
    """For each country an image that shows it in every patch."""
    return [picture([country] * CELLS) for country in countries]
