"""Passes that come first: one for all plans of a call, with no other numbers than one for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import (
    Batch,
    InputError,
    PatchTokens,
    Plan,
    ReplaceTokens,
    VisualLM,
    ZeroFFN,
)
from tolerances import EQUAL

DONORS = 3


@pytest.fixture
def model(twin: Any) -> VisualLM:
    found: VisualLM = twin().model
    return found


@pytest.fixture
def batch(model: VisualLM) -> Batch:
    return model.encode(tiny.image(0), tiny.PROMPTS["start"])


@pytest.fixture
def donor(model: VisualLM) -> Batch:
    """Of another size, so that its passes can be told from the batch's own."""
    return model.encode([tiny.image(i) for i in range(1, 4)], [tiny.PROMPTS["middle"]] * DONORS)


@contextmanager
def passes_by_samples(model: VisualLM) -> Iterator[Counter[int]]:
    """How many passes over how many samples go through the decoder's first layer."""
    seen: Counter[int] = Counter()

    def count(_: Any, args: tuple[torch.Tensor, ...], __: Any) -> None:
        seen[len(args[0])] += 1

    layer = model.hf.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def donor_plans(donor: Batch) -> list[Plan]:
    return [
        *(
            Plan(ReplaceTokens(by="mean", layers=layer, states="set")).given(set=donor)
            for layer in (0, 3)
        ),
        Plan(ReplaceTokens(by="mean", tokens="last", layers=1, states="x")).given(x=donor),
        Plan(ReplaceTokens(by="mean", layers="1-2", from_tokens="text", states="set")).given(
            set=donor
        ),
    ]


def test_a_donor_batch_is_run_once_for_all_plans(
    model: VisualLM, batch: Batch, donor: Batch
) -> None:
    plans = donor_plans(donor)
    with passes_by_samples(model) as single:
        expected = [model.run(batch, plan).logits for plan in plans]
        scored = [model.score(batch, ["red"], plan).logprob for plan in plans[:2]]
    assert single[DONORS] == len(plans) + 2
    with passes_by_samples(model) as seen:
        found = model.run_many(batch, plans)
        assert seen[DONORS] == 1
        scores = model.score_many(batch, ["red"], plans[:2])
        assert seen[DONORS] == 2
    # Of a batch that is captured once for all, each plan takes what it would take alone.
    for run, logits in zip(found, expected, strict=True):
        assert torch.equal(run.logits, logits)
    for score, logprob in zip(scores, scored, strict=True):
        assert torch.equal(score.logprob, logprob)


def test_a_first_pass_keeps_what_is_needed_and_no_more(
    model: VisualLM, batch: Batch, donor: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    usual = VisualLM.run

    def noted(self: VisualLM, *args: Any, **options: Any) -> Any:
        asked.append(options)
        return usual(self, *args, **options)

    monkeypatch.setattr(VisualLM, "run", noted)
    ffn = PatchTokens(source=0, target=3, tokens="visual", site="ffn", states="other")
    stream = ReplaceTokens(by="mean", layers=2, from_tokens="last", states="other")
    model.run_many(batch, [Plan(ffn).given(other=donor[:1]), Plan(stream).given(other=donor)])
    kept = [(options["capture"], options["tokens"].sum()) for options in asked]
    assert kept == [({"ffn": [0]}, tiny.CELLS), ({"residual": [2]}, DONORS)]
    asked.clear()
    one = donor[:1]
    model.run_many(batch, [Plan(ffn).given(other=one), Plan(stream).given(other=one), None])
    (options,) = asked
    assert options["capture"] == {"residual": [2], "ffn": [0]}
    assert np.flatnonzero(options["tokens"]).tolist() == [
        *one.visual.position.tolist(),
        one.length - 1,
    ]


def test_an_earlier_pass_over_the_batch_is_made_once(
    model: VisualLM, batch: Batch, donor: Batch
) -> None:
    back = [PatchTokens(source=3, target=1), PatchTokens(source=3, target=2, site="ffn")]
    zeroed = ZeroFFN(layers=0)
    given, one = PatchTokens(source=0, target=0, states="x"), donor[:1]
    plans = [
        *(Plan(operation) for operation in back),
        *(Plan(operation, zeroed) for operation in back),
        *(Plan(given, operation).given(x=one) for operation in back),
    ]
    expected = [model.run(batch, plan).logits for plan in plans]
    with passes_by_samples(model) as seen:
        found = model.run_many(batch, plans)
    # Its own pass for each plan; the donor's; and one with nothing, the zeroing or the donor's
    # states in force.
    assert seen == {1: len(plans) + 1 + 3}
    for run, logits in zip(found, expected, strict=True):
        assert torch.equal(run.logits, logits)


def test_a_word_is_measured_once(model: VisualLM, batch: Batch) -> None:
    plans = [Plan(ReplaceTokens(by="word", word="red", layers=layer)) for layer in (0, 2)]
    blue = Plan(ReplaceTokens(by="word", word="blue", layers=0))
    expected = [model.run(batch, plan).logits for plan in (*plans, blue)]
    with passes_by_samples(model) as seen:
        found = model.run_many(batch, [*plans, blue])
    assert seen == {1: 3 + 2}
    for run, logits in zip(found, expected, strict=True):
        assert torch.equal(run.logits, logits)


def test_another_call_captures_anew(model: VisualLM, batch: Batch, donor: Batch) -> None:
    plan = Plan(ReplaceTokens(by="mean", layers=1, states="x")).given(x=donor)
    before = model.run_many(batch, [plan])[0].logits
    weight = model.hf.model.language_model.layers[0].mlp.down_proj.weight
    old = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(0.5)
        expected = model.run(batch, plan).logits
        found = model.run_many(batch, [plan])[0].logits
    finally:
        with torch.no_grad():
            weight.copy_(old)
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


@pytest.mark.parametrize("own", [False, True], ids=["donor", "own batch"])
def test_what_one_plan_asks_for_in_vain_is_its_own_fault(
    model: VisualLM, batch: Batch, donor: Batch, own: bool
) -> None:
    def plan(source: int) -> Plan:
        if own:
            return Plan(PatchTokens(source=source, target=0))
        operation = PatchTokens(source=source, target=0, tokens="last", states="x")
        return Plan(operation).given(x=donor[:1])

    with pytest.raises(InputError, match=r"^plans\.1: no layer 9"):
        model.run_many(batch, [plan(1), plan(9)])
    nobody = PatchTokens(source=1, target=0, tokens="image[7]", states="x")
    with pytest.raises(InputError, match=r"^plans\.1: .*no token of 'x' matches"):
        model.run_many(batch, [plan(1), Plan(nobody).given(x=donor[:1])])


@pytest.mark.parametrize("first", [0, 1])
def test_what_a_plan_needs_that_chooses_tokens_first_is_not_missing(
    model: VisualLM, batch: Batch, donor: Batch, first: int
) -> None:
    """What it asks of the donor is known only when its tokens are."""
    one = donor[:1]
    plain = PatchTokens(source=1, target=1, tokens="bos", states="x")
    best = PatchTokens(source=3, target=1, tokens="top(0.5, by=norm, layer=0, within=visual)")
    other = PatchTokens(source=0, target=2, tokens="visual", states="x")
    plans = [Plan(plain).given(x=one), Plan(best, other).given(x=one)]
    plans = [plans[first], plans[1 - first], Plan(best, plain).given(x=one)]
    expected = [model.run(batch, plan).logits for plan in plans]
    for run, logits in zip(model.run_many(batch, plans), expected, strict=True):
        torch.testing.assert_close(run.logits, logits, atol=EQUAL, rtol=0)
