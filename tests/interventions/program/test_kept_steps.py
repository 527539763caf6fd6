"""Steps are made once for a plan on a batch, and anew as soon as anything they rest on changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from builders.prompts import tiny_batch
from embedlens import AblateAttention, Batch, Plan, VisualLM, ZeroFFN
from embedlens.interventions.operations.skipping import SkippedSublayer

PLAN = Plan(ZeroFFN(layers="0-1"), AblateAttention(layers="2"))


@pytest.fixture
def model(twin: Any) -> VisualLM:
    return twin().model


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that were lowered, as it happens."""
    seen: list[str] = []
    usual = SkippedSublayer.lower

    def noted(self: Any, target: Any) -> Any:
        seen.append(self.op)
        return usual(self, target)

    monkeypatch.setattr(SkippedSublayer, "lower", noted)
    return seen


def test_the_same_plan_on_the_same_batch_is_lowered_once(
    model: VisualLM, lowered: list[str]
) -> None:
    batch = tiny_batch(model)
    first = model.run(batch, PLAN).logits
    assert sorted(lowered) == ["ablate-attention", "zero-ffn"]
    again = model.run(batch, Plan(*PLAN)).logits
    assert len(lowered) == 2
    assert torch.equal(first, again)


def test_other_batches_passes_and_anatomies_are_lowered_anew(
    model: VisualLM, lowered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = tiny_batch(model)
    PLAN.compile(model, batch)
    PLAN.compile(model, replace(batch))
    assert len(lowered) == 4
    model.score(batch, ["red"] * len(batch), PLAN)
    assert len(lowered) == 6
    found = replace(model.anatomy)
    monkeypatch.setattr(VisualLM, "anatomy", property(lambda _: found))
    PLAN.compile(model, batch)
    assert len(lowered) == 8


def test_a_mask_that_was_written_in_place_is_seen(model: VisualLM, lowered: list[str]) -> None:
    batch: Batch = tiny_batch(model)
    PLAN.compile(model, batch)
    batch.inputs["input_ids"].add_(0)
    PLAN.compile(model, batch)
    assert len(lowered) == 4


def test_what_counts_heads_in_the_weights_is_lowered_every_time(
    model: VisualLM, lowered: list[str]
) -> None:
    batch, plan = tiny_batch(model), Plan(AblateAttention(heads=[0], layers="1"))
    plan.compile(model, batch)
    plan.compile(model, batch)
    assert len(lowered) == 2
