"""Plans of one call hold once what their steps have in common, and nothing else."""

from __future__ import annotations

from dataclasses import fields
from itertools import combinations
from typing import Any

import pytest
import torch

from builders.prompts import tiny_batch
from embedlens import AblateAttention, Plan, VisualLM, ZeroFFN
from embedlens.interventions import BlockAttention, Operation, PatchTokens, ScaleTokens
from embedlens.lens.runs.plan_protocol import OneCall, Pass, Touch

OPERATIONS: tuple[Operation, ...] = (
    *(kind(layers=layer) for layer in range(3) for kind in (AblateAttention, ZeroFFN)),
    ZeroFFN(layers=0, tokens="text"),
    ScaleTokens(layers=0, factor=0.5),
    ScaleTokens(layers=0, factor=0.25),
    PatchTokens(source=1, target=2),
    BlockAttention(queries="last", keys="visual", layers=1),
)


@pytest.fixture
def model(twin: Any) -> VisualLM:
    return twin().model


def test_more_plans_take_no_more_tensors(model: VisualLM) -> None:
    batch, zeroed = tiny_batch(model), OPERATIONS[:6]
    plans = [Plan(*some) for size in range(1, 5) for some in combinations(zeroed, size)]
    during = Pass("forward", call=OneCall(tuple(plans)))
    programs = [plan.compile(model, batch, during) for plan in plans]
    assert len(programs) == 56
    assert len({id(touch) for program in programs for touch in program.touches}) == len(zeroed)
    held = [step for program in programs for step in program.steps]
    tensors = {id(value) for step in held for value in vars(step).values() if _is_tensor(value)}
    # Samples and positions of the visual tokens.
    assert len(tensors) == 2


@pytest.mark.parametrize("kind", ["forward", "generation"])
def test_steps_that_differ_touch_what_they_touch_alone(model: VisualLM, kind: Any) -> None:
    batch, plans = tiny_batch(model), [Plan(operation) for operation in OPERATIONS]
    during = Pass(kind, call=OneCall(tuple(plans)))
    shared = [plan.compile(model, batch, during).touches for plan in plans]
    for plan, found in zip(plans, shared, strict=True):
        alone = plan.compile(model, batch, Pass(kind)).touches
        assert len(found) == len(alone) > 0
        assert [*map(_told, found)] == [*map(_told, alone)]
    assert len({touch.key for found in shared for touch in found}) == sum(map(len, shared))


def _told(touch: Touch) -> dict[str, Any]:
    told = {field.name: getattr(touch, field.name) for field in fields(touch)}
    return {name: v.tolist() if _is_tensor(v) else v for name, v in told.items()}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
