"""nnsight by hand over a generation: the plan is in force, and loops end without noise."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tiny
from embedlens import Batch, InputError, Plan, ScaleTokens, Unsupported, VisualLM, ZeroFFN
from tolerances import LARGE

EOS = tiny.VOCABULARY.index("</s>")
GIVEN: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
EARLY = {**GIVEN, "eos_token_id": [EOS, *range(5, 60, 2)]}
PLAN = Plan(
    ScaleTokens(factor=1.7, layers=1, tokens="visual | text"),
    ZeroFFN(layers="2-3", tokens="generated", phase="decode"),
)


@pytest.fixture
def batch(twin: Any) -> Batch:
    return twin().model.encode(
        [tiny.image(0), tiny.image(1)], [tiny.PROMPTS[name] for name in ("middle", "short")]
    )


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield told


@pytest.mark.parametrize("plan", [None, PLAN], ids=["clean", "plan"])
@pytest.mark.parametrize("given", [GIVEN, EARLY], ids=["long", "early"])
def test_what_is_read_has_the_plan_in_it(
    twin: Any, batch: Batch, plan: Plan | None, given: dict[str, Any], warned: list[Any]
) -> None:
    """The states of every pass are those that details keep, and the result that of generate."""
    model: VisualLM = twin().model
    details = model.generate_details(batch, plan, capture="residual", layers=[3], **given)
    with model.generating(batch, plan, **given) as tracer:
        states = list().save()  # noqa: C408 a list that nnsight keeps
        for _ in tracer.iter[:]:
            states.append(model.layers[3].input[:, -1])
    assert not warned
    assert torch.equal(tracer.ids, details.ids)
    assert len(states) == details.ids.shape[1]
    assert (given is EARLY) == (len(states) < 6)
    mine = torch.stack(list(states), 1)
    assert float((mine - details.residual[3]).abs().max()) < LARGE * float(mine.abs().max())
    with model.generating(batch, plan, **given) as tracer:
        ids = tracer.result.save()
    assert torch.equal(ids[:, batch.length :], details.ids)
    assert not warned


def test_an_edit_by_hand_stands_beside_the_plan(twin: Any, batch: Batch) -> None:
    """Zeroed by hand in every pass, and by a plan: the same text."""
    model: VisualLM = twin().model
    both = Plan(*PLAN, ZeroFFN(layers=0, tokens="visual | text", phase="all"))
    wanted = model.generate_details(batch, both, **GIVEN).ids
    assert not torch.equal(wanted, model.generate_details(batch, PLAN, **GIVEN).ids)
    with model.generating(batch, PLAN, **GIVEN) as tracer:
        for _ in tracer.iter[:]:
            model.layers[0].mlp.output = torch.zeros_like(model.layers[0].mlp.output)
    assert torch.equal(tracer.ids, wanted)


def test_what_stands_behind_a_loop_and_did_not_run_is_told(
    twin: Any, batch: Batch, warned: list[Any]
) -> None:
    """One warning, and none for the loops of the plan."""
    model: VisualLM = twin().model
    behind = []
    with model.generating(batch, PLAN, **EARLY) as tracer:
        for _ in tracer.iter[:]:
            model.layers[3].input.save()
        behind.append(1)
    assert not behind
    assert len(warned) == 1
    assert "layers.3.input" in str(warned[0].message)
    assert "statements after it did not run" in str(warned[0].message)


def test_nothing_is_recorded_and_the_model_is_left_as_it_was(twin: Any, batch: Batch) -> None:
    model: VisualLM = twin().model
    model.hf.train()
    try:
        with model.generating(batch, PLAN, **GIVEN) as tracer:
            for _ in tracer.iter[:]:
                entering = model.layers[1].input.save()
        assert not entering.requires_grad
        assert model.hf.training
    finally:
        model.hf.eval()


def test_what_generate_refuses_is_refused(twin: Any, batch: Batch) -> None:
    model: VisualLM = twin().model
    with pytest.raises(Unsupported, match="guidance_scale"):
        model.generating(batch, PLAN, guidance_scale=2.0)
    with pytest.raises(InputError, match="max_tokens"):
        model.generating(batch, max_tokens=3)
