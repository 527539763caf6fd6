"""A matched control does the same to as many tokens, drawn by seed and content."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builders.prompts import tiny_batch
from embedlens import (
    AblateAttention,
    AddDirection,
    BlockAttention,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ZeroFFN,
)


def test_tokens_are_drawn_and_all_else_stays() -> None:
    plan = Plan(
        PruneTokens(tokens="dead", layer=2, method="mask"),
        ZeroFFN(tokens="alive & box[0:2, 0:4]", layers="1-2", phase="prefill"),
        BlockAttention(queries="last", keys="dead", layers=3, renormalise=False),
        PatchTokens(source=1, target=3, tokens="dead", from_tokens="box[0:1, 0:1]"),
    )
    drawn = "random(like=dead, within=visual, seed=4)"
    assert plan.control(4) == Plan(
        PruneTokens(tokens=drawn, layer=2, method="mask"),
        ZeroFFN(
            tokens="random(like=alive & box[0:2, 0:4], within=visual, seed=4)",
            layers="1-2",
            phase="prefill",
        ),
        BlockAttention(queries="last", keys=drawn, layers=3, renormalise=False),
        PatchTokens(source=1, target=3, tokens=drawn, from_tokens="box[0:1, 0:1]"),
    )
    assert Plan.from_yaml(plan.control(4).to_yaml()) == plan.control(4)
    within = Plan(ZeroFFN(tokens="dead")).control(within="visual & ~dead")
    assert str(within.operations[0].tokens) == (  # type: ignore[attr-defined]
        "random(like=dead, within=visual & ~dead, seed=0)"
    )


def test_a_control_means_as_many_tokens_and_each_seed_others(twin: Any) -> None:
    batch = tiny_batch(twin().model)
    plan = Plan(ZeroFFN(tokens="dead"))
    counts = plan.chosen(batch).groupby("sample").size()
    controls = [plan.control(seed).chosen(batch) for seed in range(3)]
    for found in controls:
        assert (found.groupby("sample").size() == counts).all()
    assert not controls[0].equals(controls[1])


def test_donors_stay(twin: Any) -> None:
    model = twin().model
    vector = torch.randn(model.anatomy.hidden_size, generator=torch.Generator().manual_seed(0))
    plan = Plan(AddDirection(vector="v", tokens="dead", factor=3.0)).given(v=vector)
    batch = tiny_batch(model)
    clean, found = model.run_many(batch, [None, plan.control(1)])
    assert not torch.equal(clean.logits, found.logits)


def test_what_has_no_others_is_refused() -> None:
    with pytest.raises(InputError, match="all of 'visual' already"):
        Plan(AblateAttention(layers=1)).control()
    with pytest.raises(InputError, match="name a larger set"):
        Plan(ZeroFFN(tokens="dead")).control(within="dead")
