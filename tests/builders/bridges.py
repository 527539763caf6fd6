"""TransformerLens bridges of tiny models, over copies of their own: a bridge changes its model."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.sources import build_bridge_from_module

import tiny
from embedlens import Batch
from families.family import FAMILIES


def bridge_over(model: Any) -> Any:
    """Some adapters ask for torchvision, which only their processors need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArchitectureAdapter, "_check_required_libraries", lambda _: None)
        return build_bridge_from_module(
            model, type(model).__name__, hf_config=model.config, tokenizer=None
        )


@functools.cache
def bridge_of(name: str) -> Any:
    return bridge_over(FAMILIES[name]().model)


@functools.cache
def tiny_bridge() -> Any:
    return bridge_over(tiny.build().model)


def ran(bridge: Any, batch: Batch, **options: Any) -> Tensor:
    rest = {name: value for name, value in batch.inputs.items() if name != "input_ids"}
    with torch.no_grad():
        logits: Tensor = bridge.run_with_hooks(batch.inputs["input_ids"], **rest, **options)
    return logits


def close(first: Tensor, second: Tensor, keep: Tensor) -> float:
    """Largest difference of finite logits, in units of their standard deviation."""
    first, second = first[keep], second[keep]
    finite = torch.isfinite(first)
    assert torch.equal(finite, torch.isfinite(second))
    spread = max(1.0, float(first[finite].std()))
    return float((first - second)[finite].abs().max()) / spread
