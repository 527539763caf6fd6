"""Tracing contexts: arguments of the forward give what they promise, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from builders.prompts import tiny_batch
from embedlens import InputError, Plan, ScaleTokens
from tolerances import EQUAL


def test_weights_that_no_kernel_makes_are_refused(twin: Any) -> None:
    model = twin("llama", "sdpa").model
    with pytest.raises(InputError, match=r"sdpa attention makes no weights.*'eager'"):
        model.trace(tiny_batch(model), output_attentions=True)


def test_weights_that_are_asked_for_are_returned(twin: Any) -> None:
    model = twin("llama", "eager").model
    batch = tiny_batch(model)
    with model.trace(batch, output_attentions=True):
        weights = model.nn.output.attentions.save()
    assert len(weights) == tiny.LAYERS
    assert all(layer.shape[-2:] == (batch.length, batch.length) for layer in weights)


# ---------------------------------------------------------------- a hand edit beside a plan


DOUBLED = Plan(ScaleTokens(tokens="visual", factor=2.0, layers=2))


def test_a_hand_edit_of_what_is_read_keeps_the_plan(twin: Any) -> None:
    """The plan acts first, so what is read, and written back changed, has its changes in it."""
    model = twin().model
    batch = tiny_batch(model)
    with model.trace(batch, DOUBLED):
        entering = model.layers[2].input
        model.layers[2].input = entering * 3.0
        seen = model.layers[2].input.save()
        logits = model.nn.output.logits.save()
    both = Plan(*DOUBLED, ScaleTokens(tokens="visual | text", factor=3.0, layers=2))
    real = batch.inputs["attention_mask"].bool()
    expected = model.run(batch, both, capture="residual", layers=[2], tokens="all", logits="all")
    assert torch.equal(seen[real], expected.residual[2])
    assert torch.allclose(logits[real], expected.logits[real], atol=EQUAL)
    with model.trace(batch, DOUBLED):
        plainly = model.layers[2].input.save()
    clean = model.run(batch, capture="residual", layers=[2], tokens="visual").residual[2]
    visual = batch.visual
    assert torch.equal(plainly[visual.sample.copy(), visual.position.copy()], clean * 2.0)


def test_a_tensor_from_elsewhere_takes_the_plan_s_place(twin: Any) -> None:
    """As the docstring says: nothing of what was there is left, the plan's changes included."""
    model = twin().model
    batch = tiny_batch(model)
    with model.trace(batch):
        clean = model.layers[2].input.save()
        without = model.nn.output.logits.save()
    with model.trace(batch, DOUBLED):
        model.layers[2].input = clean
        logits = model.nn.output.logits.save()
    assert torch.equal(logits, without)
    assert not torch.equal(model.run(batch, DOUBLED, logits="all").logits, without)
    assert "takes the place" in " ".join((model.trace.__doc__ or "").split())
