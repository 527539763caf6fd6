"""What tests of the examples share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from processes import ROOT


def opened(attention: str) -> Any:
    """The shipped model as transformers loads it, wrapped by nobody."""
    return LlavaForConditionalGeneration.from_pretrained(
        ROOT / "lens" / "shipped", dtype=torch.float32, attn_implementation=attention
    ).eval()


@pytest.fixture(scope="module")
def plain() -> Any:
    """With eager attention, whose weights can be changed by hooks."""
    return opened("eager")


@pytest.fixture(scope="module")
def same_kernel() -> Any:
    """With the attention of the model under test: eager sums are up to 1.3e-5 apart from it."""
    return opened("sdpa")
