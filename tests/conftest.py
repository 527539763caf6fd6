"""What every test starts from: no network, no display, one thread, and models built once."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

import tiny
from embedlens import VisualLM

torch.set_num_threads(1)


@dataclass(frozen=True)
class Twin:
    """One random model twice: wrapped by embedlens, and plain for the oracle.

    ``plain`` is copied before embedlens or nnsight ever see the model, so nothing they do can
    leak into the oracle.
    """

    model: VisualLM
    plain: Any


@pytest.fixture(scope="session")
def twin() -> Callable[..., Twin]:
    """``twin(kind, attn_implementation)``: built on first use, shared by the session."""
    made: dict[tuple[str, str], Twin] = {}

    def get(kind: str = "llama", attn_implementation: str = "sdpa") -> Twin:
        key = (kind, attn_implementation)
        if key not in made:
            built = tiny.build(kind, attn_implementation)
            plain = copy.deepcopy(built.model)
            made[key] = Twin(VisualLM(built.model, built.processor), plain)
        return made[key]

    return get


@pytest.fixture(scope="session")
def shipped() -> VisualLM:
    """The trained model that comes with the package."""
    return VisualLM.load(device="cpu")
