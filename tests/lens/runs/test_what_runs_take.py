"""Layers, tokens and answers in the forms that people have them in."""

from __future__ import annotations

from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import tiny
from builders.prompts import tiny_batch
from embedlens import EmbedLens, InputError, Plan, VisualLM, ZeroFFN, ablation
from embedlens.lens.runs.captures import capture_positions


@pytest.fixture
def model(twin: Any) -> VisualLM:
    found: VisualLM = twin().model
    return found


@pytest.mark.parametrize(
    "layers", [np.arange(1, 3), [np.int64(1), np.int32(2)], range(1, 3), {2, 1}]
)
def test_layers_may_be_any_collection_of_whole_numbers(model: VisualLM, layers: Any) -> None:
    run = model.run(tiny_batch(model), capture="residual", layers=layers)
    assert [*run.residual] == [1, 2]


def test_layers_may_be_said_of_each_site(model: VisualLM) -> None:
    batch = tiny_batch(model)
    run = model.run(batch, capture={"ffn": [2, 0], "residual": [tiny.LAYERS], "attention": [2]})
    kept = {"residual": [tiny.LAYERS], "attention": [2], "ffn": [0, 2]}
    for site, layers in kept.items():
        assert [*getattr(run, site)] == layers
        alone = getattr(model.run(batch, capture=site, layers=layers), site)
        assert all(torch.equal(getattr(run, site)[layer], alone[layer]) for layer in layers)
    with pytest.raises(InputError, match="no layer 9"):
        model.run(batch, capture={"ffn": [9]})


def test_a_mask_may_be_a_tensor(model: VisualLM) -> None:
    batch = tiny_batch(model)
    mask = batch.inputs["attention_mask"].bool()
    found = model.run(batch, capture="ffn", layers=[1], tokens=mask).ffn[1]
    assert torch.equal(found, model.run(batch, capture="ffn", layers=[1], tokens="all").ffn[1])


def test_an_operation_without_a_plan_is_refused_in_one_line(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Types are checked in tests only.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    batch = tiny_batch(model)
    bare: Any = ZeroFFN(layers=1)
    for call in (
        lambda: model.run(batch, bare),
        lambda: model.run(batch, [Plan(bare)]),  # type: ignore[arg-type]
        lambda: model.generate(batch, bare, max_new_tokens=1),
        lambda: model.score(batch, ["a"] * len(batch), bare),
        lambda: model.run_many(batch, [bare]),
    ):
        with pytest.raises(InputError, match=r"is no plan: write Plan\(operation, …\)"):
            call()


def test_what_is_no_batch_is_refused_in_one_line(
    model: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    image: Any = "scene.png"
    for call in (
        lambda: model.run(image),
        lambda: model.entry(image),
        lambda: model.generate(image, max_new_tokens=1),
        lambda: model.score(image, ["a"] * len(image)),
        lambda: model.run_many(image, [None]),
        lambda: model.generate_many(image, [None]),
        lambda: model.trace(image).__enter__(),
    ):
        with pytest.raises(InputError, match=r"model\.encode\(images, prompts\), not str"):
            call()
    with pytest.raises(InputError, match=r"states, such as model\.entry\(batch\), not Batch"):
        EmbedLens(model).read(tiny_batch(model))  # type: ignore[arg-type]
    asked: Any = [("scene.png", "what ?", "a")]
    with pytest.raises(InputError, match=r"Example\(image, question, answer\), not tuple"):
        ablation(model, asked)


def test_other_forms_are_refused_in_one_line(model: VisualLM) -> None:
    batch = tiny_batch(model)
    with pytest.raises(InputError, match="a mask must be boolean"):
        capture_positions(batch, np.ones((2, 2), dtype=bool))
    image = tiny.VOCABULARY.index("<image>")
    for answers in ([[3], [image], [5]], ["a", "<image>", "b"]):
        with pytest.raises(InputError, match="placeholder of an image"):
            model.score(batch, answers)
