"""Modules that nobody looks into run without nnsight's entry, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders.prompts import tiny_batch
from embedlens import AblateAttention, Batch, BlockAttention, Plan, VisualLM, ZeroFFN
from embedlens.lens.opening.present_state import is_entry, modules_of
from tolerances import EQUAL

PLANS = {
    "nothing": None,
    "zeroed": Plan(AblateAttention(layers="1"), ZeroFFN(layers="0")),
    "blocked": Plan(BlockAttention(queries="last", keys="visual", layers="1")),
}


@pytest.fixture
def model(twin: Any) -> VisualLM:
    return twin().model


@pytest.fixture
def batch(model: VisualLM) -> Batch:
    return tiny_batch(model)


def entries(hf: nn.Module) -> list[bool]:
    return [is_entry(vars(module).get("forward")) for module in modules_of(hf)]


def seen_while_running(model: VisualLM, run: Any) -> tuple[Any, int]:
    """What a run returns, and how many modules had nnsight's entry while it ran."""
    counted: list[int] = []
    head = model.hf.get_submodule(model.anatomy.norm)
    hook = head.register_forward_hook(lambda *_: counted.append(sum(entries(model.hf))))
    try:
        return run(), max(counted)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", PLANS)
def test_only_what_is_looked_into_is_handed_over(model: VisualLM, batch: Batch, name: str) -> None:
    plan = PLANS[name]
    before = [vars(module).get("forward") for module in modules_of(model.hf)]
    layers = model.layers
    with model.trace(batch, plan):
        first = layers[0].output[0].save()
        traced = model.nn.output.logits[:, -1].save()
    run, seen = seen_while_running(model, lambda: model.run(batch, plan))
    assert isinstance(first, Tensor)
    assert torch.allclose(run.logits, traced, atol=EQUAL)
    touched = 0 if plan is None else len(plan.operations)
    assert seen <= 1 + touched
    # And all are back, the same ones.
    after = [vars(module).get("forward") for module in modules_of(model.hf)]
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_entries_come_back_after_an_error(model: VisualLM, batch: Batch) -> None:
    before = entries(model.hf)
    layer = model.hf.get_submodule(model.anatomy.layers[0])

    def fail(*_: Any) -> None:
        raise RuntimeError("of a hook")

    hook = layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="of a hook"):
        model.run(batch)
    hook.remove()
    assert entries(model.hf) == before


def test_edits_of_the_owner_are_carried_out(twin: Any) -> None:
    model = copy.deepcopy(twin().model)
    batch = tiny_batch(model)
    plain = model.run(batch)
    nn_model, layers = model.nn, model.layers
    with nn_model.edit(inplace=True):
        layers[1].output[:] = layers[1].output * 2
    edited = model.run(batch)
    planned = model.run(batch, PLANS["zeroed"])
    assert not torch.allclose(edited.logits, plain.logits)
    assert not torch.allclose(planned.logits, model.run(batch).logits)
    nn_model.clear_edits()
    assert torch.equal(model.run(batch).logits, plain.logits)
    assert not torch.allclose(planned.logits, model.run(batch, PLANS["zeroed"]).logits)
