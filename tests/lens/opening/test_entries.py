"""Modules that a pass does not look into run without nnsight's entry, and nobody can tell."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nnsight.intervention.interleaver import Interleaver
from torch import Tensor

import tiny
from builders.prompts import encode
from embedlens import AblateAttention, Batch, Plan, ScaleTokens, VisualLM, ZeroFFN
from embedlens.interventions.engines import nnsight as engine
from embedlens.lens.opening.entries import OwnForward
from embedlens.lens.opening.present_state import is_entry, state_of
from embedlens.lens.runs.many import hooked_pass

PLAN = Plan(AblateAttention(layers=1), ZeroFFN(layers=2, tokens="last"))
DECODER = "model.language_model"


@pytest.fixture
def model() -> VisualLM:
    built = tiny.build()
    return VisualLM(built.model, built.processor)


@pytest.fixture
def batch(model: VisualLM) -> Batch:
    return encode(model, "middle")


def reached(run: Callable[[], Any]) -> Counter[str]:
    """How often nnsight was asked at each place whether somebody waits there."""
    found: Counter[str] = Counter()
    usual = Interleaver.handle

    def counting(self: Any, place: str, value: Any) -> Any:
        found[place.rpartition(".")[0]] += 1
        return usual(self, place, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interleaver, "handle", counting)
        run()
    return found


def forwards(model: VisualLM) -> list[Any]:
    return [vars(module).get("forward") for module in model.hf.modules()]


def run(model: VisualLM, batch: Batch, plan: Plan | None = PLAN) -> Tensor:
    logits = model.run(batch, plan).logits
    assert logits is not None
    return logits


def test_only_what_is_looked_into_is_reached(model: VisualLM, batch: Batch) -> None:
    layers = [f"model.{path}" for path in model.anatomy.layers]
    found = reached(lambda: model.run(batch, PLAN, capture="residual", layers=[3]))
    expected = {"", "model", f"{layers[1]}.self_attn", f"{layers[2]}.mlp", layers[3]}
    assert set(found) == expected
    settings: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    found = reached(lambda: model.generate_ids(batch, PLAN, **settings))
    decoder = f"model.{DECODER}"
    assert set(found) == {"", "model", decoder, f"{layers[1]}.self_attn", f"{layers[2]}.mlp"}
    assert set(reached(lambda: model.score(batch, ["a"]))) == {"", "model"}


def test_shared_passes_run_without_entries(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries() -> list[Any]:
        found = forwards(model)[1:]
        return [one for one in found if type(one).__module__.startswith("nnsight.")]

    def looking(hf: Any) -> dict[str, Any]:
        inside.append(len(entries()))
        return usual(hf)

    usual, before, inside = hooked_pass.without_cache, entries(), list[int]()
    monkeypatch.setattr(hooked_pass, "without_cache", looking)
    model.run_many(batch, [PLAN, Plan(ZeroFFN(layers=3))])
    assert before
    assert inside == [0, 0]
    assert entries() == before


def test_in_an_open_trace_everything_is(model: VisualLM, batch: Batch) -> None:
    norm = model.nn.get("model.language_model.layers.0.input_layernorm")

    def opened() -> None:
        with model.trace(batch, PLAN):
            norm.output.save()

    assert len(reached(opened)) > 50


def test_afterwards_all_have_their_entries(model: VisualLM, batch: Batch) -> None:
    before = forwards(model)
    run(model, batch)
    assert forwards(model) == before

    def fail(*_: Any) -> None:
        raise RuntimeError("in the middle")

    with (
        model.hf.lm_head.register_forward_pre_hook(fail),
        pytest.raises(RuntimeError, match="in the middle"),
    ):
        run(model, batch)
    assert forwards(model) == before


def test_edits_of_the_owner_are_in_force(model: VisualLM, batch: Batch) -> None:
    """Of edits that are stored on the nnsight model nobody knows where they look."""
    expected = run(model, batch, PLAN + Plan(ScaleTokens(layers="0", factor=0.0, tokens="visual")))
    nn, rows = model.nn, torch.tensor(batch.visual.position)
    with nn.edit(inplace=True):
        states = nn.model.language_model.layers[0].input.clone()
        states[:, rows] = 0
        nn.model.language_model.layers[0].input = states
    assert torch.equal(run(model, batch), expected)


def test_steps_of_somebody_else_may_look_anywhere(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's function that finds a module by a path which no plain value says."""
    seen: list[Tensor] = []

    def look(model: Any, store: dict[str, Any], step: dict[str, Any], decoded: int) -> None:
        seen.append(model.get(f"{step['path']}.down_proj").input)

    usual = engine.bound
    monkeypatch.setattr(engine, "bound", lambda step, scope: (look, usual(step, scope)[1]))
    monkeypatch.setattr(engine.NNsight, "leaves_out", lambda *_: frozenset())
    run(model, batch, Plan(ZeroFFN(layers=2)))
    assert seen[0].shape == (1, batch.length, 48)


def test_a_look_or_a_copy_in_the_middle_of_a_pass(model: VisualLM, batch: Batch) -> None:
    expected, before = run(model, batch), state_of(model.hf)
    nn, copies = model.nn, []

    def look(*_: Any) -> None:
        norm = model.hf.get_submodule(f"{DECODER}.norm")
        assert isinstance(vars(norm)["forward"], OwnForward)
        assert is_entry(vars(norm)["forward"])
        assert model.nn is nn
        copies.append(copy.deepcopy(model.hf.get_submodule(DECODER)))

    with model.hf.lm_head.register_forward_pre_hook(look):
        assert torch.equal(run(model, batch), expected)
    assert state_of(model.hf) == before
    kept = [vars(module).get("forward") for module in copies[0].modules()]
    assert not any(isinstance(forward, OwnForward) for forward in kept)
    copied = copy.deepcopy(model)
    copied.hf.get_submodule(DECODER).load_state_dict(copies[0].state_dict())
    assert torch.equal(run(copied, batch), expected)


def test_forwards_of_instances_are_run(batch: Batch) -> None:
    """What an instance runs in place of its class's forward runs under its entry."""
    built = tiny.build()
    norm = built.model.get_submodule(f"{DECODER}.norm")
    usual = norm.forward
    norm.forward = lambda states: 2 * usual(states)
    model = VisualLM(built.model, built.processor)
    found = run(model, batch, None)
    del vars(norm)["forward"], vars(norm)["__nnsight__"]
    with torch.no_grad():
        plain = built.model(**batch.inputs, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(found, 2 * plain)


def test_hooks_of_accelerate_are_called() -> None:
    """Its hooks run in the entry, which has taken the place of the forward that ran them."""
    hooks = pytest.importorskip("accelerate.hooks")

    class Hook(hooks.ModelHook):  # type: ignore[misc, name-defined]
        calls = 0

        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    built, hook = tiny.build(), Hook()
    hooks.add_hook_to_module(built.model.get_submodule(f"{DECODER}.norm"), hook)
    model = VisualLM(built.model, built.processor)
    batch = encode(model, "middle")
    before = hook.calls
    run(model, batch)
    assert hook.calls == before + 1


def test_a_replaced_part_is_run(model: VisualLM, batch: Batch) -> None:
    run(model, batch)
    layers = model.hf.get_submodule(f"{DECODER}.layers")
    layers[1] = copy.deepcopy(layers[2])
    replaced = VisualLM(copy.deepcopy(model.hf), model.processor)
    assert torch.equal(run(model, batch, None), run(replaced, batch, None))
    assert set(reached(lambda: run(model, batch, None))) == {"", "model"}
