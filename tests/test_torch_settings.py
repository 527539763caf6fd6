"""Every public function under torch's global settings: the same values, and settings left alone."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import tiny
from builders.prompts import labelled
from embedlens import (
    Batch,
    BlockAttention,
    ContextLens,
    EmbedLens,
    Example,
    InjectTokens,
    LogitLens,
    Markers,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    Result,
    Run,
    ScaleTokens,
    TextBank,
    VisualLM,
    ZeroFFN,
    ablation,
    alignment,
    class_agreement,
    lens_hits,
    paper,
    sparsity,
    token_map,
)
from embedlens.analyses.check.check_model import check_model
from embedlens.lens.loading import SHIPPED
from embedlens.lens.scenes import Scene

pytestmark = pytest.mark.full

TEXTS = ["what is red and blue ?", "the star is green"]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name: str | None) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: default_device("meta"),
    "meta context": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
    "no grad": torch.no_grad,
    "threads": lambda: threads(2),
}
QUICK = ("float16", "meta context", "inference mode", "autocast")


def settings() -> dict[str, Any]:
    """Not the state of `random`, from which the tests' own type checker draws."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "inference": torch.is_inference_mode_enabled(),
        "grad": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "torch": torch.default_generator.get_state().numpy().tobytes(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
    }


@cache
def given() -> SimpleNamespace:
    """A model and what goes into public functions, made while all settings are torch's own."""
    built = tiny.build()
    plain, model = copy.deepcopy(built.model), VisualLM(built.model, built.processor)
    prompts = [tiny.PROMPTS[name] for name in ("middle", "short", "end")]
    images = [tiny.image(i) for i in range(3)]
    batch = labelled(model.encode(images, prompts))
    other = model.encode([tiny.image(7 + i) for i in range(3)], prompts)
    plan = Plan(ZeroFFN(layers="1-2"), ScaleTokens(tokens="dead", factor=0.5))
    return SimpleNamespace(
        plain=plain,
        processor=built.processor,
        model=model,
        prompts=prompts,
        images=images,
        batch=batch,
        plan=plan,
        other=other,
        states=model.run(batch, capture="residual", layers=[2]).residual[2],
        markers=Markers.discover(model, images),
        bank=TextBank.of(model, TEXTS),
        run=model.run(batch, capture=("residual", "ffn")),
    )


def saved(what: Any, load: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        what.save(Path(folder) / "saved")
        return load(Path(folder) / "saved")


def traced(model: VisualLM, batch: Batch, *, grad: bool) -> Tensor:
    layers = model.layers
    with model.trace(batch, grad=grad):
        states = layers[2].output
        states = (states[0] if isinstance(states, tuple) else states).save()
    if grad:
        with torch.inference_mode(mode=False), torch.enable_grad():
            (gradient,) = torch.autograd.grad(states.sum(), states)
        assert gradient.all()
    return states.detach()


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "VisualLM": lambda g: VisualLM(copy.deepcopy(g.plain), g.processor).anatomy.n_layers,
    "load": lambda _: _loaded(),
    "load for a server": lambda _: VisualLM.load(SHIPPED, remote=True).n_layers,
    "scene": lambda _: np.asarray(Scene.sample(3).image()),
    "encode": lambda g: g.model.encode(g.images, g.prompts),
    "text": lambda g: g.model.encode(None, TEXTS),
    "batch": lambda g: g.model.batch(dict(g.batch.inputs)),
    "subset": lambda g: g.batch.subset([2, 0]),
    "contents": lambda g: dataclasses.replace(g.batch).contents,
    "run": lambda g: g.model.run(g.batch, capture=("residual", "attention", "ffn"), logits="all"),
    "run a plan": lambda g: g.model.run(g.batch, g.plan, capture="ffn"),
    "run_many": lambda g: g.model.run_many(g.batch, [None, g.plan, *plans(g)]),
    "score": lambda g: g.model.score(g.batch, ["red", "a b", "c"], g.plan, end=True),
    "score_many": lambda g: g.model.score_many(g.batch, ["red", "a b", "c"], [g.plan, None]),
    "generate": lambda g: list(g.model.generate(g.batch, g.plan, max_new_tokens=3)),
    "generate_ids": lambda g: g.model.generate_ids(g.batch, num_beams=2, max_new_tokens=3),
    "entry": lambda g: g.model.entry(g.batch),
    "trace": lambda g: traced(g.model, g.batch, grad=False),
    "gradients": lambda g: traced(g.model, g.batch, grad=True),
    "EmbedLens": lambda g: EmbedLens(g.model).read(g.states, k=3).frame,
    "LogitLens": lambda g: LogitLens(g.model).read(g.states, k=3).frame,
    "ContextLens": lambda g: ContextLens(g.model, TEXTS).read(g.states, k=3).frame,
    "TextBank": lambda g: saved(TextBank.of(g.model, TEXTS), TextBank.load),
    "check a bank": lambda g: g.bank.check(g.model),
    "discover": lambda g: saved(Markers.discover(g.model, g.images), Markers.load),
    "classify": lambda g: g.markers.classify(g.model, g.batch),
    "ids": lambda g: Markers.from_ids({"dead": [3]}).classify(g.model, g.batch),
    "save a run": lambda g: saved(g.run, Run.load),
    "cost": lambda g: g.plan.cost(g.model, g.batch),
    "describe": lambda g: g.plan.describe(g.model, g.batch),
    "chosen": lambda g: g.plan.chosen(g.batch),
    "paper": lambda g: g.model.run(paper.with_ids(g.model, g.batch), paper.skip([0, 1.5], "dead")),
    "token_map": lambda g: saved(token_map(g.model, g.batch), Result.load),
    "sparsity": lambda g: sparsity(g.model, g.batch),
    "lens_hits": lambda g: lens_hits(g.model, g.batch, truths(g)),
    "alignment": lambda g: alignment(g.model, g.batch, TEXTS, tokens="visual"),
    "class_agreement": lambda g: class_agreement(
        g.model, g.batch, ["object"] * len(g.batch.visual)
    ),
    "ablation": lambda g: ablation(g.model, examples(g), max_new_tokens=2),
    "check_model": lambda g: check_model(g.model),
}
# Objects of others, and the time of day.
UNCOMPARED = ("remake", "anatomy", "bank", "meta", "about", "images", "model")
SLOW = ("load for a server", "load", "ablation", "check_model", "sparsity", "alignment")


def plans(g: Any) -> list[Plan]:
    return [
        Plan(PatchTokens(source=2, target=1, tokens="visual")),
        Plan(PatchTokens(source=2, target=2, tokens="visual", states="d")).given(d=g.other),
        Plan(BlockAttention(layers="1-2", queries="text", keys="visual")),
        Plan(PruneTokens(tokens="dead")),
        Plan(ReplaceTokens(tokens="dead", by="noise", layers="1")),
        Plan(ReplaceTokens(tokens="dead", by="mean", layers="1")),
        Plan(InjectTokens(layer=2)),
    ]


def truths(g: Any) -> list[list[str]]:
    return [[("red", "blue", "star")[i % 3]] for i in range(len(g.batch.visual))]


def _loaded() -> Any:
    model = VisualLM.load(device="cpu")
    return model.entry(model.encode(Scene.sample(0).image(), "what is the object ?"))


def examples(g: Any) -> list[Example]:
    return [Example(image, "what is <image> ?", "red") for image in g.images]


def parts(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Whatever can be compared in a value, with its place."""
    if isinstance(value, Tensor):
        # Types and devices count, and whether it can ever have a gradient.
        kind = value.dtype, value.device, value.is_inference()
        yield at, (kind, value.detach().numpy().tobytes())
    elif isinstance(value, np.ndarray):
        yield at, (value.dtype, value.tolist() if value.dtype == object else value.tobytes())
    elif isinstance(value, pd.DataFrame):
        yield at, value.to_json()
        yield f"{at} types", [str(kind) for kind in value.dtypes]
    elif isinstance(value, Mapping):
        for key in value:
            yield from parts(value[key], f"{at}.{key}")
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from parts(one, f"{at}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            if field.name not in UNCOMPARED:
                yield from parts(getattr(value, field.name), f"{at}.{field.name}")
    elif isinstance(value, str | int | float | type(None)):
        yield at, repr(value)


@cache
def usual(name: str) -> dict[str, Any]:
    return dict(parts(FUNCTIONS[name](given())))


def pairs() -> Iterator[Any]:
    for setting in SETTINGS:
        for name in FUNCTIONS:
            quick = setting in QUICK and name not in SLOW
            yield pytest.param(setting, name, marks=() if quick else pytest.mark.full)


@pytest.mark.parametrize(("setting", "name"), list(pairs()))
def test_a_setting_changes_nothing_and_is_left_as_it_was(setting: str, name: str) -> None:
    g, expected = given(), usual(name)
    with SETTINGS[setting]():
        before = settings()
        found = FUNCTIONS[name](g)
        after = settings()
    assert before == after
    found = dict(parts(found))
    assert found.keys() == expected.keys()
    if setting != "threads":  # which add up in another order
        assert [at for at in found if found[at] != expected[at]] == []
