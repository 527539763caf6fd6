"""The engine of shared passes: on every family it does what nnsight does, and refuses the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from embedlens import (
    AblateAttention,
    BlockAttention,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
    Unsupported,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.interventions.engines.engine import engine_of
from embedlens.lens.runs.forward import run_request
from embedlens.lens.runs.many.hooked_model import HookedModel
from embedlens.lens.runs.many.hooked_pass import hooked_pass
from embedlens.lens.runs.plan_protocol import Pass
from families.zoo import READABLE, built, visual_lm
from tolerances import EQUAL

PLANS = (
    Plan(ZeroFFN(layers=0)),
    Plan(AblateAttention(tokens="text & ~bos")),
    Plan(BlockAttention(queries="last", keys="visual", layers=0)),
    Plan(WithdrawTokens(tokens="visual", layer=1, method="mask")),
    Plan(PatchTokens(source=0, target=1)),
    Plan(PatchTokens(source=0, target=1, site="ffn"), ScaleTokens(factor=0.5, layers=1)),
    Plan(ReplaceTokens(by="noise", seed=4, layers=1), ZeroFFN(layers=0)),
    Plan(ScaleTokens(norm_of="text", layers=1)),
)


def hooked(model: VisualLM, batch: Any, plan: Plan) -> Any:
    """The numbers of a pass with hooks."""
    request = run_request(model, batch, "residual", [1], "all", "last", "all", "all", False)
    host = HookedModel(model.hf)
    in_force = plan.compile(model, batch, Pass("forward")).apply(host)
    with torch.no_grad(), in_force:
        return hooked_pass(host, batch.inputs, request)


@pytest.mark.quick("llava", "gemma3", "qwen3_vl")
@pytest.mark.parametrize("name", READABLE)
def test_hooks_do_what_nnsight_does(name: str) -> None:
    model = visual_lm(name)
    batch = model.batch(built(name).inputs)
    if "residual" in model.anatomy.refusals:
        pytest.skip("has no stream to look at")
    untouched = model.run(batch, logits="all").logits
    done = moved = 0
    kept: dict[str, Any] = {"capture": "residual", "layers": [1], "tokens": "all", "logits": "all"}
    for plan in PLANS:
        try:
            single = model.run(batch, plan, **kept)
        except (Unsupported, InputError):
            continue
        found = hooked(model, batch, plan)
        shown = single.logits.abs() < 1e30
        torch.testing.assert_close(
            found.logits[shown], single.logits[shown], atol=EQUAL, rtol=EQUAL
        )
        torch.testing.assert_close(
            found.states["residual.1"], single.residual[1], atol=EQUAL, rtol=EQUAL
        )
        done += 1
        moved += not torch.allclose(single.logits[shown], untouched[shown], atol=EQUAL)
    assert done >= 2 or "sublayers" in model.anatomy.refusals
    assert moved >= done - 1


def test_a_context_leaves_no_hooks_behind(twin: Callable[..., Any]) -> None:
    model = twin().model
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    before = model.run(batch).logits
    theirs = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.hf.modules()]
    hooked(model, batch, PLANS[1])
    assert torch.equal(model.run(batch).logits, before)
    left = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.hf.modules()]
    assert left == theirs


@pytest.mark.parametrize(
    "plan",
    [
        Plan(BlockAttention(queries="last", keys="visual", renormalise=False)),
        Plan(PruneTokens(tokens="visual", layer=1)),
        Plan(PruneTokens(tokens="visual", method="remove")),
    ],
)
def test_what_has_no_form_in_hooks_is_refused_before_anything_runs(
    twin: Callable[..., Any], plan: Plan
) -> None:
    model = twin().model
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    with pytest.raises(Unsupported, match="has no form in hooks"):
        plan.compile(model, batch, Pass("forward")).apply(HookedModel(model.hf))


def test_weights_have_no_form_in_hooks(twin: Callable[..., Any]) -> None:
    model = twin().model
    host = HookedModel(model.hf)
    engine = engine_of(host)
    engine.check_attention("mask", 0, model, "block")
    with pytest.raises(Unsupported, match="attention have no form in Hooks"):
        engine.check_attention("weights", 0, model, "block")
