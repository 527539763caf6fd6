"""Parts of the models that are fed with tensors made by hand: no tokenizer, no image processor.

A family without a processor can still be looked at; what it lacks is only the encoding of prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from families.family import Family, random_model

IMAGE, START, END = 90, 91, 92
TEXT: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EYE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
QWEN_EYE: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
GRID = torch.tensor([[1, 4, 6]])


def prompt(count: int, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """One prompt with ``count`` image tokens between a start and an end token."""
    ids = torch.tensor([[1, 20, START, *[IMAGE] * count, END, 30, 31, 32, 33]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tensors}


def pixels(*shape: int) -> torch.Tensor:
    """The same noise in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def by_hand(make: Callable[[], Any], inputs: dict[str, torch.Tensor], calm: Any = ()) -> Family:
    """A family fed with tensors only."""
    return Family(
        random_model(make, calm=calm), None, "", inputs, why_no_processor="fed with tensors by hand"
    )
