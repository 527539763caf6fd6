"""A new lens is one file: registered where it is defined, found by whatever compares lenses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from embedlens import ContextLens, VisualLM, lens_hits
from embedlens.lens.readouts import LENSES, Lens, register_lens

FILE = '''
"""Reads every state as the first words of the vocabulary."""

import torch

from embedlens.lens.readouts import Readout, register_lens


@register_lens
class FirstWords:
    def __init__(self, model):
        self.tokenizer = model.tokenizer

    def read(self, states, k=10):
        ids = torch.arange(k).expand(*states.shape[:-1], k)
        return Readout(ids, -ids.float(), self.tokenizer)
'''


@pytest.fixture
def written(tmp_path: Path) -> Iterator[type[Lens]]:
    path = tmp_path / "first_words.py"
    path.write_text(FILE)
    spec = importlib.util.spec_from_file_location("first_words", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module.FirstWords
    finally:
        LENSES.pop("FirstWords", None)


@pytest.fixture(scope="module")
def model(twin: Callable[..., Any]) -> VisualLM:
    return twin().model


def test_a_lens_is_registered_where_it_is_defined(written: type[Lens], model: VisualLM) -> None:
    assert list(LENSES) == ["EmbedLens", "LogitLens", "Patchscope", "FirstWords"]
    assert LENSES["FirstWords"] is written
    found = LENSES["FirstWords"](model).read(torch.zeros(2, 3, model.anatomy.hidden_size), k=4)
    assert found.ids.tolist() == [[[0, 1, 2, 3]] * 3] * 2
    assert list(found.frame["rank"]) == [1, 2, 3, 4] * 6


def test_all_registered_lenses_are_compared(written: type[Lens], model: VisualLM) -> None:
    batch = model.encode(tiny.image(0), "a")
    result = lens_hits(model, batch, [["red"], ["blue"]] * (len(batch.visual) // 2), ks=(1,))
    assert set(result.frame["lens"]) == {"EmbedLens", "LogitLens", "FirstWords"}


def test_a_second_lens_of_a_name_is_refused(written: type[Lens]) -> None:
    with pytest.raises(ValueError, match="a lens FirstWords already"):
        register_lens(written)


def test_what_needs_more_than_a_model_is_a_lens_too(model: VisualLM) -> None:
    assert isinstance(ContextLens(model, ["the red star"]), Lens)
    assert "ContextLens" not in LENSES
