"""Tests on real weights: in this folder a model has learnt language, elsewhere it is random."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from embedlens import VisualLM
from real.planted_words import COUNTRIES, planted
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


@dataclass(frozen=True)
class Countries:
    """The real model with the word of a country in every patch; ``plain`` is for the oracles.

    ``plain`` was copied before embedlens or nnsight saw the model, and computes eagerly; ``alike``
    too, by the kernel the model has.
    """

    model: VisualLM
    plain: Any
    alike: Any


@pytest.fixture(scope="session")
def countries(smollm2: tuple[LlamaForCausalLM, PreTrainedTokenizerFast]) -> Countries:
    """Opened once; row i of the table is the word embedding of country i."""
    language, tokenizer = smollm2
    ids = [tokenizer(f" {name}").input_ids for name in COUNTRIES]
    words = language.get_input_embeddings().weight.detach()
    built, processor = planted(language, tokenizer, words[[own for (own,) in ids]])
    plain, alike = copy.deepcopy(built), copy.deepcopy(built)
    plain.set_attn_implementation("eager")
    return Countries(VisualLM(built, processor), plain, alike)
