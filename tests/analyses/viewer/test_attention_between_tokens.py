"""What tokens receive and give, against loops over the weights that transformers itself returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from builders.viewed_tokens import numbers
from embedlens import BlockAttention, InjectTokens, Plan, PruneTokens, VisualLM
from embedlens.analyses import view
from embedlens.analyses.viewer import attention_between_tokens as between
from embedlens.analyses.viewer.attention_between_tokens import GIVEN, RECEIVED
from embedlens.lens.inputs.batch import Batch
from tolerances import ACCUMULATED


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    prompts = [tiny.PROMPTS["start"], tiny.PROMPTS["short"]]  # of different lengths
    return model.encode([tiny.image(0), tiny.image(1)], prompts)


def of_transformers(model: VisualLM, batch: Batch) -> list[np.ndarray]:
    """Weights by layer, mean over heads, ``[sample, query, key]``."""
    before = model.attn_implementation
    model.hf.set_attn_implementation("eager")
    with torch.no_grad():
        found = model.hf(**batch.inputs, output_attentions=True).attentions
    model.hf.set_attn_implementation(before)
    return [layer.double().mean(1).numpy() for layer in found]


def by_hand(weights: np.ndarray, batch: Batch, token: int) -> tuple[float, float]:
    real = batch.inputs["attention_mask"].bool().numpy()
    sample, key = int(batch.visual.sample[token]), int(batch.visual.position[token])
    received = [
        weights[sample, query, key] * real[sample, : query + 1].sum()
        for query in range(key, batch.length)
        if real[sample, query]
    ]
    others = batch.visual.position[batch.visual.sample == sample]
    given = sum(weights[sample, key, other] for other in others if other != key)
    return float(np.mean(received)), float(given)


def test_received_and_given_equal_loops_over_weights(model: VisualLM, batch: Batch) -> None:
    found = between.attention_between_tokens(model, batch, None, range(model.n_layers + 1))
    assert list(found) == list(range(model.n_layers))
    for layer, weights in enumerate(of_transformers(model, batch)):
        for token in range(0, len(batch.visual), 5):
            received, given = by_hand(weights, batch, token)
            assert float(found[layer][0][token]) == pytest.approx(received, rel=ACCUMULATED)
            assert float(found[layer][1][token]) == pytest.approx(given, abs=ACCUMULATED)


def test_passes_of_few_layers_find_the_same_and_only_so_many_are_made(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = between.attention_between_tokens(model, batch, None, [0, 2, 3], passes=1)
    monkeypatch.setattr(between, "_BYTES_AT_ONCE", 1)
    one_by_one = between.attention_between_tokens(model, batch, None, [0, 2, 3])
    assert list(at_once) == list(one_by_one) == [0, 2, 3]
    for layer, both in at_once.items():
        torch.testing.assert_close(torch.stack(both), torch.stack(one_by_one[layer]))
    assert between.attention_between_tokens(model, batch, None, [0, 2, 3], passes=2) == {}


def test_a_plan_is_in_force(model: VisualLM, batch: Batch) -> None:
    plan = Plan(BlockAttention(queries="visual", keys="visual", layers=1))
    found = between.attention_between_tokens(model, batch, plan, [1, 2])
    assert float(found[1][1].abs().max()) == 0
    assert float(found[2][1].max()) > 0.01


def test_a_view_shows_both_where_a_token_is(model: VisualLM, batch: Batch) -> None:
    tokens = "box[0:1, 0:4]"
    plans = {"pruned": Plan(PruneTokens(tokens=tokens, layer=2))}
    plans["late"] = Plan(InjectTokens(tokens=tokens, layer=2))
    data = view(model, batch, plans, k=1, layers=[0, 1, 2, 3, 4]).data
    row = np.arange(len(batch.visual)) % tiny.CELLS < 4
    for condition, without in {"pruned": [2, 3], "late": [0, 1]}.items():
        for name in (RECEIVED, GIVEN):
            (one,) = [
                m for m in data["measures"] if (m["name"], m["condition"]) == (name, condition)
            ]
            assert one["layers"] == [0, 1, 2, 3]
            unknown = np.isnan(numbers(one["values"]).reshape(4, -1))
            for layer in range(4):
                assert unknown[layer].tolist() == (row & (layer in without)).tolist()
    silent = view(model, batch, k=1, layers=[0], attention=False).data
    assert [measure["name"] for measure in silent["measures"]] == ["norm"]


@pytest.mark.full
def test_a_model_without_weights_says_why_there_are_none(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise between.Unsupported("no layer mixes tokens by attention")

    monkeypatch.setattr(between, "inside_site", refuse)
    data = view(model, batch, layers=[0], k=1).data
    assert [measure["name"] for measure in data["measures"]] == ["norm"]
    assert data["notes"] == [
        "The attention of tokens is not there: no layer mixes tokens by attention"
    ]
