"""Steps that go up through the layers share a stored edit; in whatever order, they act alike."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch

import tiny
from builders.prompts import encode
from embedlens import AblateAttention, Batch, Plan, ScaleTokens, VisualLM, ZeroFFN
from embedlens.interventions.engines import nnsight as engine
from embedlens.interventions.engines.payload.carry_out import zero
from embedlens.interventions.engines.payload.drop_between_layers import drop_between_layers
from embedlens.lens.runs.plan_protocol import Pass
from tolerances import EQUAL, MOVED

UP = (AblateAttention(layers=0), ZeroFFN(layers=1), ScaleTokens(layers=3, factor=0.5))


@pytest.fixture(scope="module")
def model() -> VisualLM:
    built = tiny.build()
    return VisualLM(built.model, built.processor)


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    return encode(model, "middle")


def edits(model: VisualLM, batch: Batch, plan: Plan, kind: Any = "forward") -> int:
    """How many are stored on a host with the plan in force."""
    return len(plan.compile(model, batch, Pass(kind)).apply(model.nn)._edits)


def test_only_steps_in_higher_layers_share_an_edit(model: VisualLM, batch: Batch) -> None:
    assert edits(model, batch, Plan(*UP)) == 1
    assert edits(model, batch, Plan(*UP[::-1])) == 3
    assert edits(model, batch, Plan(UP[0], UP[2], UP[1])) == 2
    # In one layer a forward may reach them the other way round.
    assert edits(model, batch, Plan(ZeroFFN(layers=1), AblateAttention(layers=1))) == 2


def test_what_acts_in_several_layers_or_passes_has_an_edit_of_its_own(
    model: VisualLM, batch: Batch
) -> None:
    steps: list[dict[str, Any]] = [{"layer": 0}, {"layer": 1, "layers": []}, {"layer": 3}]
    actions = list(zip((zero, drop_between_layers, zero), steps, strict=True))
    assert len(engine.store_edits(model.nn, actions)._edits) == 3
    assert len(engine.store_edits(model.nn, actions[::2])._edits) == 1
    # One more tells which tokens a pass is over.
    assert edits(model, batch, Plan(*UP), "generation") == 4


def test_steps_of_somebody_else_have_edits_of_their_own(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edits(model, batch, Plan(*UP)) == 1
    monkeypatch.setattr(engine, "_PAYLOAD", "somewhere.else.")
    assert edits(model, batch, Plan(*UP)) == 3


def test_steps_act_alike_in_every_order(model: VisualLM, batch: Batch) -> None:
    clean = model.run(batch).logits
    found = [model.run(batch, Plan(*order)).logits for order in permutations(UP)]
    assert clean is not None
    for logits in found:
        assert logits is not None
        assert found[0] is not None
        assert float((logits - clean).abs().max()) > MOVED
        assert torch.allclose(logits, found[0], atol=EQUAL)
