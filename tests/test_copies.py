"""Objects are copied and pickled; what cannot travel says what to do instead."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from builders.prompts import tiny_batch
from embedlens import (
    Block,
    ContextLens,
    EmbedLens,
    Example,
    Layout,
    LogitLens,
    Markers,
    PatchTokens,
    Plan,
    ScaleTokens,
    TextBank,
    Unsupported,
    VisualLM,
    ZeroFFN,
    token_map,
)
from embedlens.interventions import parse_selector

WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@cache
def given() -> SimpleNamespace:
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    batch = tiny_batch(model)
    run = model.run(batch, capture="residual")
    return SimpleNamespace(
        model=model,
        batch=batch,
        run=run,
        states=run.residual[2],
        bank=TextBank.of(model, ["what is red ?", "the star"]),
        markers=Markers.discover(model, [tiny.image(i) for i in range(3)]),
    )


def answers(one: Any, _: Any) -> Any:
    return list(one), one.cut


MADE: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "batch": (lambda g: g.batch, lambda one, g: g.model.run(one).logits),
    "subset": (lambda g: g.batch.subset([1]), lambda one, g: g.model.run(one.subset([0])).logits),
    "run": (lambda g: g.run, lambda one, g: (one.logits, g.model.run(one.batch).logits)),
    "plan": (
        lambda g: Plan(PatchTokens(source=1, target=2, states="d"), ZeroFFN()).given(d=g.batch),
        lambda one, g: (g.model.run(g.batch, one).logits, one.to_yaml()),
    ),
    "operation": (
        lambda _: ScaleTokens(tokens="dead & ~bos", factor=2.0),
        lambda one, g: g.model.run(g.batch, Plan(one)).logits,
    ),
    "selector": (lambda _: parse_selector("dead & ~text"), lambda one, g: (str(one), repr(one))),
    "layout": (lambda _: Layout((Block(2, 2), Block(1, 3))), lambda one, _: (len(one), repr(one))),
    "visual tokens": (lambda g: g.batch.visual, lambda one, _: one.frame.to_json()),
    "classes": (
        lambda g: g.markers.classify(g.model, g.batch),
        lambda one, _: one.labels.tolist(),
    ),
    "markers": (
        lambda g: g.markers,
        lambda one, g: one.classify(g.model, g.batch).labels.tolist(),
    ),
    "ids": (
        lambda _: Markers.from_ids({"dead": [3]}),
        lambda one, g: one.classify(g.model, g.batch).labels.tolist(),
    ),
    "result": (lambda g: token_map(g.model, g.batch), lambda one, _: one.frame.to_json()),
    "answers": (lambda g: g.model.generate(g.batch, max_new_tokens=1), answers),
    "example": (lambda _: Example(tiny.image(0), "what ?", "red"), lambda one, _: one.answer),
    "bank": (lambda g: g.bank, lambda one, g: (one.check(g.model), list(one.states.values()))),
    "EmbedLens": (lambda g: EmbedLens(g.model), lambda one, g: one.read(g.states).ids),
    "LogitLens": (lambda g: LogitLens(g.model), lambda one, g: one.read(g.states).ids),
    "ContextLens": (
        lambda g: ContextLens(g.model, g.bank),
        lambda one, g: one.read(g.states, k=2).ids,
    ),
    "readout": (
        lambda g: EmbedLens(g.model).read(g.states, k=2),
        lambda one, _: one.frame.to_json(),
    ),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MADE)
def test_what_was_copied_works_like_the_original(name: str, way: str) -> None:
    make, use = MADE[name]
    original = make(given())
    use(original, given())
    if way == "pickle" and isinstance(original, EmbedLens | LogitLens | ContextLens):
        with pytest.raises(Unsupported, match=rf"a worker loads the model and makes {name}\(model"):
            pickle.dumps(original)
        return
    made = WAYS[way](original)
    assert type(made) is type(original)
    assert same(use(made, given()), use(original, given()))


def test_a_model_is_copied_with_weights_of_its_own() -> None:
    model, batch = given().model, given().batch
    before = model.run(batch).logits
    other = copy.deepcopy(model)
    assert other.name == model.name
    assert other.hf is not model.hf
    assert torch.equal(other.run(batch).logits, before)
    assert other.generate(batch, max_new_tokens=2) == model.generate(batch, max_new_tokens=2)
    with torch.no_grad():
        other.hf.lm_head.weight.mul_(2)
    assert torch.allclose(other.run(batch).logits, 2 * before)
    assert torch.equal(model.run(batch).logits, before)
    assert copy.copy(model).hf is model.hf


def test_weights_that_are_not_loaded_are_not_copied_either() -> None:
    lazy = VisualLM.load(lazy=True, device="cpu")
    for way in (copy.copy, copy.deepcopy):
        assert "not loaded" in repr(way(lazy))


def test_a_model_does_not_travel_to_another_process_and_says_what_to_do() -> None:
    with pytest.raises(Unsupported, match=r"VisualLM\.load"):
        pickle.dumps(given().model)
