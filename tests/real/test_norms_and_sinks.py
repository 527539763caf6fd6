"""Norms, sinks and massive activations of the real model are as docs/real_model.md says."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny
from builders.prompts import visual_of
from builders.scripts import script_module
from embedlens.analyses.report.sentences import everyday_sentences
from processes import ROOT
from real.planted_words import picture
from tolerances import MEASURED

MASSIVE_DIMENSION, FIRST_LAYER = 507, 12


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script_module("benchmarks/norms_and_sinks")


@pytest.fixture(scope="module")
def table(benchmark: ModuleType, smollm2: Any) -> pd.DataFrame:
    model, tokenizer = smollm2
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    measured = benchmark.measure(model, tokenizer, everyday_sentences())
    model.set_attn_implementation(before)
    return measured


def numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]


def test_the_page_has_the_table_that_is_measured(
    benchmark: ModuleType, table: pd.DataFrame
) -> None:
    page = (ROOT / "docs" / "real_model.md").read_text().splitlines()
    expected = benchmark.markdown(table).splitlines()
    written = [line for line in page if line.startswith("|")]
    assert written[:2] == expected[:2]
    assert len(written) == len(expected)
    for line, other in zip(written[2:], expected[2:], strict=True):
        assert ("none" in line) == ("none" in other)
        # Rounding, and other orders of sums on other machines.
        for one, two in zip(numbers(line), numbers(other), strict=True):
            assert abs(one - two) <= 1 + MEASURED * two if two >= 1000 else abs(one - two) < 1.01


def test_every_number_of_the_page_stands_in_its_table() -> None:
    page = (ROOT / "docs" / "real_model.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| \d", line)]
    known = {number for row in rows for number in numbers(row)}
    said = [line for line in page.splitlines() if line[:2] in ("- ", "  ")]
    told = numbers(re.sub(r"arXiv [\d.]+|\d+ times|least \d+", "", "\n".join(said)))
    assert len(told) > 25
    assert set(told) <= known


def test_what_the_page_says_of_sinks(table: pd.DataFrame) -> None:
    ratio = table["first"] / table["rest"]
    assert (ratio[[0, 1, 10, 11]].between(0.8, 1.3)).all()
    assert (ratio[3:9] > 5).all()
    assert (ratio[12:29] > 30).all()
    assert [MASSIVE_DIMENSION in dims for dims in table["dims"]] == [
        12 <= i < 30 for i in range(31)
    ]
    assert (table["largest_rest"] < 1000).all()


def test_nothing_of_the_kind_is_measured_in_random_weights(benchmark: ModuleType) -> None:
    config = LlamaConfig(
        vocab_size=len(tiny.VOCABULARY),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    texts = ["what is this ? a red star", "the blue circle on the left", "where is the letter a ?"]
    found = benchmark.measure(model, tiny.tokenizer(), texts)
    assert not any(found["dims"])
    assert (found["first"] / found["rest"]).between(0.5, 2).all()
    # An even share is 1 / 2 for the second token, 1 / 3 for the third, and so on.
    lengths = [len(tiny.tokenizer()(text).input_ids) for text in texts]
    even = np.mean([np.mean([1 / (i + 1) for i in range(1, length)]) for length in lengths])
    assert (found["attention"].dropna() - even).abs().max() < 0.05


@pytest.mark.parametrize("first", [True, False])
def test_what_comes_first_is_the_sink_a_visual_token_too(countries: Any, first: bool) -> None:
    model = countries.model
    prompt = "<image> What is it?" if first else "What is it? <image>"
    shown = [[0, 1, 2, 3, 4, 5, 6, 7, 8], [5, 0, 5, 1, 5, 1, 0, 0, 0]]
    batch = model.encode([picture(rows) for rows in shown], [prompt] * 2)
    assert bool(visual_of(batch)[:, 0].all()) == first
    run = model.run(batch, capture="residual", layers=[FIRST_LAYER], logits=None)
    states = run.residual[FIRST_LAYER].abs().reshape(2, len(shown[0]), -1)
    massive = states[:, :, MASSIVE_DIMENSION] > 1000 * states.median()
    assert massive[:, 0].tolist() == [first, first]
    assert not massive[:, 1:].any()
