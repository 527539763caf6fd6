"""Tests on real weights: in this folder a model has learnt language, elsewhere it is random."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from real.smollm2 import language_model, weights_or_skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Loading alone takes a quarter of a minute: .ci/run only."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.full)


@pytest.fixture(scope="session")
def smollm2() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """SmolLM2 and its tokenizer, shared by the session: copy what you change."""
    return language_model(weights_or_skip())
