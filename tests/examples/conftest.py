"""What tests of the examples share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from processes import ROOT


@pytest.fixture(scope="module")
def plain() -> Any:
    """The shipped model as transformers loads it, with eager attention, wrapped by nobody."""
    return LlavaForConditionalGeneration.from_pretrained(
        ROOT / "lens" / "shipped", dtype=torch.float32, attn_implementation="eager"
    ).eval()
