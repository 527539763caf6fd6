"""Planted text states of the real model: `alignment` names their layer, and none where none is."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from builders.scripts import script_module
from embedlens import Batch, VisualLM
from embedlens.analyses import Result, alignment
from embedlens.analyses.alignment_by_layer.answer import answer
from embedlens.analyses.alignment_by_layer.curves_by_layer import TextCurves, text_curves
from embedlens.analyses.alignment_by_layer.token_states import TokenStates
from embedlens.analyses.analysis import find
from embedlens.analyses.claim import judged
from embedlens.analyses.report.sentences import everyday_sentences
from real.planted_words import CELLS, PATCH, SIDE, picture, planted

IMAGES = 12


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return script_module("benchmarks/planted_layers")


@pytest.fixture(scope="module")
def text(smollm2: Any, benchmark: ModuleType) -> tuple[TokenStates, TokenStates, TextCurves]:
    """The bank, states of other sentences, and what the bank's own curves are."""
    model, tokenizer = smollm2
    bank = benchmark.states(tokenizer, model, everyday_sentences())
    other = benchmark.states(tokenizer, model, benchmark.other_sentences()[:60])
    return bank, other, text_curves(bank, benchmark.TOKENS, 0)


@pytest.mark.parametrize("layer", range(0, 31, 5))
def test_the_layer_of_planted_states_is_named(
    benchmark: ModuleType, text: tuple[TokenStates, TokenStates, TextCurves], layer: int
) -> None:
    bank, other, own = text
    order = torch.randperm(len(other), generator=torch.Generator().manual_seed(layer))
    tokens = other.states[layer][order[: benchmark.IMAGES * benchmark.TOKENS]]
    found = benchmark.answered(bank, own, tokens, layer)
    assert found.kind == "layer"
    assert abs(found.layer["value"] - layer) <= 1


def test_no_layer_is_named_where_there_is_none(
    benchmark: ModuleType, text: tuple[TokenStates, TokenStates, TextCurves]
) -> None:
    bank, other, own = text
    for name, tokens in benchmark.nothing(other, seed=1000):
        found = benchmark.answered(bank, own, tokens, 1000)
        assert found.kind == ("none" if "another" in name else "chance"), name


def verdicts(result: Result) -> set[str]:
    return {claim.verdict for claim in judged(find("alignment").claims(result))}


def rows_of(images: int) -> list[list[int]]:
    return np.arange(images * CELLS).reshape(images, CELLS).tolist()


@pytest.mark.parametrize("layer", [0, 16, 27])
def test_a_model_with_planted_states_says_their_layer(
    smollm2: Any, text: tuple[TokenStates, TokenStates, TextCurves], layer: int
) -> None:
    _, other, _ = text
    table = other.states[layer][:: max(1, len(other) // 256)][:256]
    model = VisualLM(*planted(*smollm2, table))
    batch = model.encode([[picture(rows)] for rows in rows_of(IMAGES)], ["Look:"] * IMAGES)
    found = alignment(model, batch, everyday_sentences(), tokens="visual")
    named = answer(found.frame)
    assert named.kind == "layer"
    assert abs(named.layer["value"] - layer) <= 1
    expected = "agrees" if layer == 16 else "differs"
    assert judged(find("alignment").claims(found))[0].verdict == expected


@pytest.mark.parametrize("images", [3, 12])
def test_an_untrained_tower_and_projector_agree_with_nothing(smollm2: Any, images: int) -> None:
    torch.manual_seed(0)
    built, processor = planted(*smollm2, torch.zeros(1, smollm2[0].config.hidden_size))
    inner = built.model
    fresh = type(built)(built.config).model
    inner.vision_tower = fresh.vision_tower
    inner.multi_modal_projector = fresh.multi_modal_projector
    model = VisualLM(built.eval(), processor)
    noise = np.random.default_rng(0).integers(256, size=(images, PATCH * SIDE, PATCH * SIDE, 3))
    photos = [[Image.fromarray(pixels.astype(np.uint8))] for pixels in noise]
    batch: Batch = model.encode(photos, ["Look:"] * images)
    found = alignment(model, batch, everyday_sentences(), tokens="visual")
    assert answer(found.frame).kind in ("chance", "few")
    assert verdicts(found) == {"undecided"}
    said = " ".join(find("alignment").findings(found))
    assert "By direction" not in said
    assert "as the paper argues" not in said
