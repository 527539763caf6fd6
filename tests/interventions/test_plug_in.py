"""New operations, steps and engines, each from one file, with no other file touched."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from embedlens import InputError, Plan, ReplaceTokens, Unsupported, VisualLM, ZeroFFN
from embedlens.interventions.engines.engine import ENGINES, engine, engine_of
from embedlens.interventions.operations import OPERATIONS, operation

OPERATION = '''
"""Flipping the sign of states: an operation, its kind of step, and what nnsight does for it."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from embedlens.interventions.engines.nnsight import at_module, bound
from embedlens.interventions.engines.payload.carry_out import index_of, replace, states_at
from embedlens.interventions.operations.operation import InLayers, TokenOperation, operation
from embedlens.interventions.program.site import Site
from embedlens.interventions.program.steps import TokenStep
from embedlens.interventions.layers_and_heads.layers import ALL


@dataclass(frozen=True, kw_only=True, eq=False)
class Flip(TokenStep):
    """Turn states around."""


def flip(model, store, step, decoded):
    site = model.get(step["path"])
    states = states_at(site, step)
    replace(site, step, states, -states[index_of(step, states)])


bound.register(Flip, partial(at_module, flip))


@operation
class FlipTokens(TokenOperation):
    """Turn the residual stream entering some layers around.

    Attributes:
        layers: Before which layers.
    """

    op: Literal["flip-tokens"] = "flip-tokens"
    layers: InLayers = ALL

    def lower(self, target):
        return [
            Flip(site=Site(layer, "entry"), **place)
            for layer in self.layers.indices(target.model.n_layers)
            for place in self.places(target, layer)
        ]

    def describe(self, phrases):
        return f"{phrases.tokens(self.tokens)} entering {phrases.layers(self.layers)} are flipped."
'''

ENGINE = '''
"""An engine whose host is a list, which it fills with what it would do."""

from functools import singledispatch

from embedlens import Unsupported
from embedlens.interventions.engines.engine import Engine, engine
from embedlens.interventions.program.steps import Zero


class Diary(list):
    """The host."""


@singledispatch
def entry(step):
    raise Unsupported(f"{type(step).__name__} has no form in a diary")


@entry.register
def _(step: Zero):
    return f"zero the {step.site} at {len(step.rows)} tokens"


@engine
class DiaryEngine(Engine):
    """Writes down what is done."""

    def hosts(self, host):
        return isinstance(host, Diary)

    def apply(self, steps, scope, host):
        return Diary([*host, *map(entry, steps)])
'''


@pytest.fixture(scope="module")
def model(twin: Any) -> VisualLM:
    found: VisualLM = twin("llama", "eager").model
    return found


@pytest.fixture
def plugged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: VisualLM
) -> Iterator[Callable[..., Any]]:
    """Writes a file and imports it; what it registers is forgotten afterwards."""
    engine_of(model.nn)
    registries: tuple[dict[str, Any], ...] = (OPERATIONS, ENGINES)
    before = [dict(registry) for registry in registries]
    monkeypatch.syspath_prepend(tmp_path)

    def plug(name: str, text: str) -> Any:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield plug
    for registry, kept in zip(registries, before, strict=True):
        registry.clear()
        registry.update(kept)


def test_an_operation_from_one_file_is_found_everywhere(plugged: Any, model: VisualLM) -> None:
    flip = plugged("flip_tokens", OPERATION).FlipTokens
    schema = Plan.json_schema()["$defs"]["FlipTokens"]
    assert schema["properties"]["layers"]["description"] == "Before which layers."
    assert schema["properties"]["tokens"]["default"] == "visual"
    plan = Plan(flip(layers=1, tokens="visual & ~ last"))
    assert plan == Plan.from_yaml(plan.to_yaml())
    row = plan.frame.iloc[0].to_dict()
    assert (row["operation"], row["tokens"], row["layers"]) == (
        "flip-tokens",
        "visual & ~last",
        "1",
    )
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    assert "layer 1 (1 of 4) are flipped" in plan.describe(model, batch)
    with pytest.raises(InputError, match="flip-tokens"):
        Plan.from_yaml("operations: [{op: flop-tokens}]")


def test_its_steps_run_and_share_a_pass(plugged: Any, model: VisualLM) -> None:
    flip = plugged("flip_tokens", OPERATION).FlipTokens
    batch = model.encode([tiny.image(0), tiny.image(1)], [tiny.PROMPTS["middle"]] * 2)
    plan = Plan(flip(layers=1))
    found = model.run(batch, plan).logits
    expected = hooked(model.hf, model.anatomy.layers[1], batch)
    torch.testing.assert_close(found, expected)
    many = model.run_many(batch, [None, plan, Plan(ZeroFFN(layers=2)), plan], at_once=4)
    torch.testing.assert_close(many[1].logits, expected)
    with pytest.raises(InputError, match=r"operations\.0.*operations\.1"):
        model.run(batch, plan + Plan(ReplaceTokens(by="zero", layers=1)))


def hooked(hf: nn.Module, path: str, batch: Any) -> torch.Tensor:
    """The logits of the last position, visual states turned around by a plain torch hook."""
    visual = batch.visual

    def turn(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        states = args[0].clone()
        states[visual.sample, visual.position] *= -1
        return (states, *args[1:]), kwargs

    handle = hf.get_submodule(path).register_forward_pre_hook(turn, with_kwargs=True)
    with handle, torch.no_grad():
        return hf(**batch.inputs).logits[:, -1]


def test_an_engine_from_one_file_is_applied_to_its_hosts(plugged: Any, model: VisualLM) -> None:
    diary = plugged("diary", ENGINE).Diary
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    tokens = int((batch.inputs["input_ids"] == tiny.IMAGE_ID).sum())
    program = Plan(ZeroFFN(layers="1,2")).compile(model, batch)
    assert program.apply(diary(["today"])) == [
        "today",
        f"zero the ffn of layer 1 at {tokens} tokens",
        f"zero the ffn of layer 2 at {tokens} tokens",
    ]
    scaled = Plan.from_yaml("operations: [{op: scale-tokens, factor: 2.0}]").compile(model, batch)
    with pytest.raises(Unsupported, match="Scale has no form in a diary"):
        scaled.apply(diary())
    with pytest.raises(Unsupported, match="no engine applies programs to dict"):
        program.apply({})


def test_steps_without_a_form_are_refused(plugged: Any, model: VisualLM) -> None:
    kind = plugged("flip_tokens", OPERATION.replace("bound.register(", "print(")).FlipTokens
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    with pytest.raises(Unsupported, match=r"'Flip' at the entry of layer 1 has no form in nnsight"):
        model.run(batch, Plan(kind(layers=1)))


def test_names_are_given_once(model: VisualLM) -> None:
    with pytest.raises(ValueError, match="there is an operation 'zero-ffn' already"):
        operation(ZeroFFN)
    assert engine_of(model.nn) is ENGINES["NNsight"]
    with pytest.raises(ValueError, match="there is an engine 'NNsight' already"):
        engine(type(ENGINES["NNsight"]))
