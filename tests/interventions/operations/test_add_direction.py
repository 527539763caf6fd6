"""A vector added to states, or written over them, against torch hooks on a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import batch_of, layers_of, pair
from builders.prompts import text_of, tiny_batch, visual_of
from embedlens import AddDirection, InputError, PatchTokens, Plan, ReplaceTokens, VisualLM
from oracles.overwriting import (
    Overwrite,
    Seen,
    assert_overwritten,
    assert_overwritten_while_generating,
    constant,
    overwritten,
    times,
)
from tolerances import ACCUMULATED, EQUAL

ZOO = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "mistral3", "aria", "molmo2")
FACTOR = -1.7


def vectors(model: VisualLM) -> Tensor:
    """One for each layer's input and one behind the last, ``[n_layers + 1, d]``."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(model.n_layers + 1, model.anatomy.hidden_size, generator=generator)


def plus(vector: Tensor) -> Any:
    def made(states: Tensor, _: Seen) -> Tensor:
        return states + FACTOR * vector

    return made


@pytest.mark.quick("llava", "gemma3")
@pytest.mark.parametrize("two", [False, True], ids=["alone", "padded"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ZOO)
def test_every_family_equals_hooks(name: str, attn: str, two: bool) -> None:
    two = two and name != "aria"  # which takes one sample
    (model, plain), batch = pair(name, attn), batch_of(name, attn, two=two)
    v, where = vectors(model), visual_of(batch)
    edits = [Overwrite(layers_of(plain, name)[at], plus(v[at]), where) for at in (0, 2)]
    plan = Plan(AddDirection(vector="v", factor=FACTOR, layers="0,2")).given(v=v)
    assert_overwritten(name, attn, batch, plan, edits)
    one = Plan(AddDirection(vector="v", factor=FACTOR, layers="1")).given(v=v[1])
    edits = [Overwrite(layers_of(plain, name)[1], plus(v[1]), where)]
    assert_overwritten(name, attn, batch, one, edits)
    mean = Plan(ReplaceTokens(by="vector", vector="v", layers="0,1")).given(v=v)
    edits = [Overwrite(layers_of(plain, name)[at], constant(v[at]), where) for at in (0, 1)]
    assert_overwritten(name, attn, batch, mean, edits)


def test_it_is_added_to_what_is_in_force() -> None:
    (model, plain), batch = pair("llava", "sdpa"), batch_of("llava", "sdpa", two=True)
    v, where, stack = vectors(model), visual_of(batch), layers_of(plain, "llava")
    plan = Plan(
        ReplaceTokens(by="zero", layers=1),
        AddDirection(vector="v", factor=FACTOR, layers=1),
        AddDirection(vector="w", factor=FACTOR, layers=1),
    )
    edits = [
        Overwrite(stack[1], times(0.0), where),
        Overwrite(stack[1], plus(v[1]), where),
        Overwrite(stack[1], plus(v[3]), where),
    ]
    assert_overwritten("llava", "sdpa", batch, plan.given(v=v, w=v[3]), edits)


@pytest.mark.quick("llava")
@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "idefics3"])
def test_generation_equals_hooks(name: str, attn: str, phase: str) -> None:
    (model, plain), batch = pair(name, attn), batch_of(name, attn, two=True)
    v, prompt = vectors(model), phase != "decode"
    later = None if phase == "prefill" else torch.ones(len(batch), dtype=torch.bool)
    stack, where = layers_of(plain, name), text_of(batch)
    edits = [Overwrite(stack[at], plus(v[at]), where, later, prompt=prompt) for at in (1, 2)]
    plan = Plan(
        AddDirection(vector="v", factor=FACTOR, layers="1-2", tokens="text", phase=phase)
    ).given(v=v)
    first = 1 if phase == "decode" else 0
    assert_overwritten_while_generating(name, attn, batch, plan, edits, first=first)


@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
def test_scores_equal_decoding_step_by_step(twin: Any, phase: str) -> None:
    model, plain = twin().model, twin().plain
    batch, v = tiny_batch(model, "one"), vectors(twin().model)
    where, later = batch.inputs["attention_mask"].bool(), torch.ones(1, dtype=torch.bool)
    edits = [
        Overwrite(
            plain.model.language_model.layers[1],
            plus(v[1]),
            where,
            None if phase == "prefill" else later,
            prompt=phase != "decode",
        )
    ]
    operation = AddDirection(
        vector="v", factor=FACTOR, layers=1, tokens="visual | text", phase=phase
    )
    expected = 0.0
    with torch.no_grad(), overwritten(edits):
        out = plain(**batch.inputs, use_cache=True)
        for word in "a b red star".split():
            token = tiny.VOCABULARY.index(word)
            expected += float(out.logits[0, -1].double().log_softmax(-1)[token])
            ids = torch.tensor([[token]])
            out = plain(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
    found = model.score(batch, ["a b red star"], Plan(operation).given(v=v))
    assert float(found.logprob) == pytest.approx(expected, abs=ACCUMULATED)


def test_many_at_once_are_as_one_by_one(twin: Any) -> None:
    model = twin().model
    batch, v = tiny_batch(model), vectors(model)
    plans = [
        Plan(AddDirection(vector="v", factor=factor, layers=layer)).given(v=v * (layer + 1))
        for layer in range(3)
        for factor in (-1.0, 0.5, 2.0)
    ]
    plans += [Plan(ReplaceTokens(by="vector", vector="v", layers=2)).given(v=v)]
    runs = model.run_many(batch, plans, at_once=4, capture="residual", layers=[2])
    for plan, found in zip(plans, runs, strict=True):
        alone = model.run(batch, plan, capture="residual", layers=[2])
        assert (found.logits - alone.logits).abs().max() < EQUAL
        assert (found.residual[2] - alone.residual[2]).abs().max() < EQUAL


def test_a_factor_of_zero_changes_no_bit(twin: Any) -> None:
    model = twin().model
    batch = tiny_batch(model)
    plan = Plan(AddDirection(vector="v", factor=0, layers="all")).given(v=vectors(model))
    assert torch.equal(model.run(batch, plan).logits, model.run(batch).logits)


def test_gradients_reach_the_vector(twin: Any) -> None:
    """So that a direction can be trained."""
    model = twin().model
    batch, v = tiny_batch(model), vectors(model)[1].requires_grad_()
    plan = Plan(AddDirection(vector="v", layers=1)).given(v=v)
    with model.trace(batch, plan, grad=True):
        last = model.nn.output.logits[:, -1].sum().save()
    (found,) = torch.autograd.grad(last, v)

    def loss(amount: float) -> float:
        moved = Plan(AddDirection(vector="v", layers=1)).given(
            v=v.detach() + amount * found / found.norm()
        )
        return float(model.run(batch, moved).logits.double().sum())

    slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    assert slope == pytest.approx(float(found.norm()), rel=0.02)


def test_it_is_read_from_text_and_an_array_will_do(twin: Any, tmp_path: Path) -> None:
    model = twin().model
    batch, v = tiny_batch(model), vectors(model)
    plan = Plan(AddDirection(vector="v", factor=0.5, layers="1-2", tokens="text"))
    again = Plan.from_yaml(plan.to_yaml())
    assert again == plan
    found = model.run(batch, again.given(v=v.numpy())).logits
    assert torch.equal(found, model.run(batch, plan.given(v=v)).logits)
    assert plan.given(v=v) == plan.given(v=v)
    assert plan.given(v=v) != plan.given(v=v.clone())
    assert hash(plan.given(v=v)) == hash(plan.given(v=v))
    assert "0.5 times the vector 'v' is added" in plan.describe(model, batch)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "which this plan was not given"),
        ({"v": torch.zeros(7)}, r"a tensor \[7\]; this model takes \[32\]"),
        ({"v": torch.zeros(2, 32)}, r"\[5, 32\], one for each"),
        ({"v": torch.full((32,), float("nan"))}, "finite"),
        ({"v": torch.zeros(32, dtype=torch.long)}, "floating-point"),
        ({"v": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"v": [1.0, 2.0]}, "not list"),
        ({"other": torch.zeros(32)}, "or vector='other'"),
    ],
)
def test_what_does_not_fit_is_refused(twin: Any, given: dict[str, Any], words: str) -> None:
    model = twin().model
    with pytest.raises(InputError, match=words):
        model.run(tiny_batch(model), Plan(AddDirection(vector="v")).given(**given))


def test_states_of_tokens_are_no_vector_and_the_other_way_round(twin: Any) -> None:
    model = twin().model
    batch = tiny_batch(model)
    with pytest.raises(InputError, match="was given as a Batch"):
        model.run(batch, Plan(AddDirection(vector="v")).given(v=batch))
    patch = Plan(PatchTokens(source=0, target=1, states="v"))
    with pytest.raises(InputError, match="a tensor does not say whose"):
        model.run(batch, patch.given(v=np.zeros(32, np.float32)))
    with pytest.raises(InputError, match="go together"):
        ReplaceTokens(by="vector")
    with pytest.raises(InputError, match="go together"):
        ReplaceTokens(by="zero", vector="v")
