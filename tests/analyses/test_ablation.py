"""Ablation against greedy decoding with hooks of its own, and controls that control."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

import tiny
from embedlens import InputError, Markers, VisualLM
from embedlens.analyses import Example, Result, ablation, find
from embedlens.analyses.ablation_by_layer.layer_sets import layer_sets, wrong_images
from embedlens.analyses.ablation_by_layer.measure import _check
from embedlens.analyses.ablation_by_layer.report_text import by_task
from embedlens.analyses.select_rows import one, select
from tolerances import RECOMPUTED

PROMPTS = ["what is this ?", "where is the red star ?", "a b"]


@pytest.fixture(scope="module")
def model(twin: Callable[..., Any]) -> VisualLM:
    return twin().model


@pytest.fixture(scope="module")
def examples(model: VisualLM) -> list[Example]:
    """Answers that the untouched model gives to some and not to others."""
    rows = []
    for i in range(6):
        prompt = PROMPTS[i % 3]
        said = model.generate(model.encode(tiny.image(i // 2), prompt), max_new_tokens=1)[0]
        answer = said if i % 3 else "circle"
        rows.append(Example(tiny.image(i // 2), prompt, answer or "circle", f"task {i % 2}"))
    return rows


def zeroing(model: Any, where: str, layers: list[int], visual: torch.Tensor) -> list[Any]:
    """Plain hooks that zero what attention or the FFN returns at the given positions."""

    def zero(_: Any, __: Any, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        state = state.clone()
        if state.shape[1] > 1:
            state[:, : visual.shape[1]][visual] = 0
        return (state, *output[1:]) if isinstance(output, tuple) else state

    decoder = model.model.language_model.layers
    name = "self_attn" if where == "attention" else "mlp"
    return [getattr(decoder[layer], name).register_forward_hook(zero) for layer in layers]


@pytest.mark.parametrize(
    ("operation", "scope", "layer", "layers"),
    [
        ("ffn", "single", 1, [1]),
        ("attention", "single", 0, [0]),
        ("ffn", "above", 2, [2, 3]),
        ("attention", "below", 3, [0, 1, 2]),
        ("ffn", "below", 4, [0, 1, 2, 3]),
    ],
)
def test_log_probabilities_equal_those_under_plain_hooks(
    twin: Callable[..., Any],
    examples: list[Example],
    operation: str,
    scope: str,
    layer: int,
    layers: list[int],
) -> None:
    pair = twin()
    result = ablation(pair.model, examples, operations=[operation], scopes=[scope], batch_size=4)
    condition = result.meta["conditions"].index([operation, scope, layer])
    processor = tiny.processor()
    for i, example in enumerate(examples):
        chat = [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": example.prompt}],
            }
        ]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=text, images=example.images, return_tensors="pt")
        answer = processor.tokenizer(example.answer, add_special_tokens=False).input_ids
        answer = [*answer, tiny.VOCABULARY.index("</s>")]
        visual = inputs["input_ids"] == tiny.IMAGE_ID
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs.pop("mm_token_type_ids", None)
        handles = zeroing(pair.plain, operation, layers, visual)
        try:
            with torch.no_grad():
                logits = pair.plain(**inputs).logits[0, -len(answer) - 1 : -1]
        finally:
            for handle in handles:
                handle.remove()
        logprob = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
        right = (logits.argmax(-1) == torch.tensor(answer)).all()
        assert float(result.tensors["logprob"][condition, i]) == pytest.approx(
            float(logprob), abs=RECOMPUTED
        )
        assert bool(result.tensors["right"][condition, i]) == bool(right)


@pytest.fixture(scope="module")
def own(model: VisualLM) -> Result:
    """Agreement with the model's own answers, which changes when parts are taken away."""
    rows = [Example(tiny.image(i), PROMPTS[i % 3], None, f"task {i % 2}") for i in range(6)]
    return ablation(model, rows, batch_size=4, max_new_tokens=3)


def test_the_frame_is_the_mean_of_the_examples(own: Result) -> None:
    tasks = np.array(["task 0", "task 1"] * 3)
    for c, (operation, scope, layer) in enumerate(own.meta["conditions"]):
        rows = select(own.frame, operation=operation, scope=scope)
        rows = rows if layer is None else select(rows, layer=layer)
        for task in ("all", "task 0", "task 1"):
            here = np.ones(6, bool) if task == "all" else tasks == task
            row = one(rows, task=task)
            right = own.tensors["right"][c].numpy()[here]
            clean = own.tensors["right"][0].numpy()[here]
            assert row["accuracy"] == pytest.approx(right.mean())
            assert row["difference"] == pytest.approx((right - clean).mean())
            assert row["logprob"] == pytest.approx(own.tensors["logprob"][c].numpy()[here].mean())
            assert row["examples"] == here.sum()


def test_the_models_own_answer_is_what_the_untouched_model_says(own: Result) -> None:
    assert one(own.frame, scope="clean", task="all")["accuracy"] == 1.0
    assert own.meta["reference"] == "the untouched model's own answer"
    assert select(own.frame, task="all")["accuracy"].min() < 1.0


def test_a_ceiling_and_an_agreement_are_called_what_they_are(own: Result) -> None:
    analysis = find("ablation")
    said = " ".join([*analysis.findings(own), analysis.data(own), analysis.caption])
    assert "accuracy" not in said.lower()
    assert "at its ceiling by construction" in said
    assert "Agreement" in analysis.table(own).columns
    assert "same answer" in own.plot().axes[0].get_ylabel()


def test_tasks_are_tested_in_pairs_and_corrected(own: Result) -> None:
    """Against scipy: with one question per image the paired test is the exact binomial one."""
    table = by_task(own)
    assert len(table) == 4
    raw = []
    for row in table.itertuples():
        found = own.meta["conditions"].index([row.operation, "above", 0])
        here = np.array(["task 0", "task 1"] * 3) == row.task
        change = (own.tensors["right"][found] - own.tensors["right"][0]).numpy()[here]
        lost, won = int((change < 0).sum()), int((change > 0).sum())
        raw.append(binomtest(lost, lost + won).pvalue if lost + won else 1.0)
        assert row.difference == pytest.approx(change.mean())
    ranked = sorted(range(4), key=raw.__getitem__)
    corrected = np.maximum.accumulate([min(1, (4 - i) * raw[at]) for i, at in enumerate(ranked)])
    assert table["p"].to_numpy()[ranked] == pytest.approx(corrected)


def test_a_question_that_is_asked_again_counts_once(model: VisualLM) -> None:
    """Verbatim about the same image, whatever object holds it; in a task and in all."""
    first, other = tiny.image(0), tiny.image(1)
    asked = [
        Example(first, "a b", "red", "one"),
        Example(other, "a b", "red", "one"),
        Example(first.copy(), "what is this ?", "red", "two"),
    ]
    again = [
        *asked,
        Example(first.copy(), "a b", "red", "one"),
        Example(first, "a b", "red", "two"),
    ]
    settings: dict[str, Any] = {"operations": ["ffn"], "scopes": ["above"]}
    once, twice = (ablation(model, each, **settings) for each in (asked, again))
    assert twice.meta["examples"] == once.meta["examples"] == 3
    assert twice.tensors["right"].shape[1] == 5
    for task, count in (("all", 3), ("one", 2), ("two", 2)):
        assert set(select(twice.frame, task=task)["examples"]) == {count}
    for task in ("all", "one"):
        here, there = (
            select(each.frame, task=task).drop(columns="layer") for each in (once, twice)
        )
        pd.testing.assert_frame_equal(
            here.reset_index(drop=True), there.reset_index(drop=True), rtol=RECOMPUTED
        )


def test_one_question_with_two_answers_is_refused(model: VisualLM) -> None:
    asked = [Example(tiny.image(0), "a b", answer) for answer in ("red", "blue")]
    with pytest.raises(InputError, match="asked twice about the same image"):
        ablation(model, asked)


def test_the_same_layers_give_the_same_numbers_in_every_scope(own: Result) -> None:
    for operation in ("attention", "ffn"):
        rows = select(own.frame, operation=operation, task="all")
        for layers, same in rows.groupby("layers"):
            assert same["logprob"].nunique() == 1, layers
        assert set(rows["layers"]) >= {"0", "3", "0-3", "0-1", "2-3"}


def test_scopes_are_the_layer_sets_they_say() -> None:
    assert layer_sets("single", 3) == [(0, (0,)), (1, (1,)), (2, (2,))]
    assert layer_sets("below", 3) == [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2))]
    assert layer_sets("above", 3) == [(0, (0, 1, 2)), (1, (1, 2)), (2, (2,))]


@pytest.mark.parametrize("seed", range(4))
def test_a_wrong_image_is_never_the_right_one_and_as_many(seed: int) -> None:
    contents = [(1,), (1,), (7,), (2, 3), (3, 2), (3, 5), (6, 8), (2, 9), (4, 4, 4)]
    wrong = wrong_images(contents, seed)
    for own, other in zip(contents[:-1], wrong, strict=False):
        assert other is not None
        assert not set(contents[other]) & set(own)
        assert len(contents[other]) == len(own)
    assert wrong[-1] is None
    assert wrong_images([(1, 2), (2, 1), (1, 3)], seed) == [None] * 3
    turned = wrong_images(contents[::-1], seed)[::-1]
    for here, there in zip(wrong[:-1], turned, strict=False):
        assert contents[here] == contents[::-1][there]


def test_wrong_images_differ_and_depend_on_the_seed() -> None:
    contents = [(i,) for i in range(20)]
    drawn = [wrong_images(contents, seed) for seed in range(5)]
    assert len({tuple(each) for each in drawn}) == 5
    assert len(set(drawn[0])) > 8


def test_images_of_the_same_bytes_and_other_sizes_are_two(model: VisualLM) -> None:
    wide, tall = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (32, 64), "red")
    examples = [Example(image, "what is this ?", "red") for image in (wide, tall, wide.copy())]
    meta = ablation(model, examples, operations=["ffn"], scopes=["single"]).meta
    assert meta["images"] == 2
    assert meta["unmatched_wrong_images"] == 0


@pytest.mark.full
def test_nothing_depends_on_the_batch_size_or_the_order(model: VisualLM) -> None:
    """Draws of tokens included."""
    control = "random(like=box[0:1, 0:2], within=visual, seed=0)"
    examples = [Example(tiny.image(i), PROMPTS[i % 3], "red", "t") for i in range(5)]

    def logprobs(asked: list[Example], batch_size: int) -> np.ndarray:
        made = ablation(
            model,
            asked,
            operations=["ffn"],
            scopes=["above"],
            tokens=control,
            batch_size=batch_size,
        )
        return made.tensors["logprob"].numpy()

    together = logprobs(examples, 5)
    assert np.allclose(together, logprobs(examples, 1), atol=RECOMPUTED)
    assert np.allclose(together, logprobs(examples[::-1], 2)[:, ::-1], atol=RECOMPUTED)


def test_without_a_second_image_the_control_is_missing_not_zero(model: VisualLM) -> None:
    result = ablation(model, [Example(tiny.image(0), "a b")], operations=["ffn"], scopes=["above"])
    wrong = one(result.frame, scope="wrong image", task="all")
    assert np.isnan(wrong["accuracy"])
    assert result.meta["unmatched_wrong_images"] == 1


def test_files_and_several_images_work_and_progress_is_reported(
    model: VisualLM, tmp_path: Path
) -> None:
    tiny.image(0).save(tmp_path / "a.png")
    pair = [tiny.image(1), tiny.image(2)]
    examples = [
        Example([tmp_path / "a.png", tiny.image(3)], tiny.PROMPTS["two"]),
        Example(pair, tiny.PROMPTS["two"]),
    ]
    steps: list[tuple[int, int]] = []
    ablation(
        model,
        examples,
        operations=["ffn"],
        scopes=["single"],
        batch_size=1,
        progress=lambda _, done, total: steps.append((done, total)),
    )
    done = [step for step, _ in steps]
    assert done == sorted(set(done))
    # Per example the untouched model, four layers and a wrong image; plans may share a pass.
    assert {6, 12} <= set(done) <= set(range(1, 13))
    assert {total for _, total in steps} == {12}


def test_classes_select_tokens(model: VisualLM) -> None:
    markers = Markers.from_ids({"dead": range(5, 45)}, k=3)
    examples = [Example(tiny.image(i), "a b") for i in range(2)]
    arguments: dict[str, Any] = {"operations": ["ffn"], "scopes": ["above"], "max_new_tokens": 2}
    dead = ablation(model, examples, tokens="dead", markers=markers, **arguments)
    visual = ablation(model, examples, **arguments)
    assert (dead.tensors["logprob"][2:] != visual.tensors["logprob"][2:]).any()
    assert dead.meta["tokens"] == "dead"


def test_refusals_say_what_is_wrong(model: VisualLM) -> None:
    example = Example(tiny.image(0), "a b")
    with pytest.raises(InputError, match="no examples"):
        ablation(model, [])
    with pytest.raises(InputError, match="all or none"):
        ablation(model, [example, Example(tiny.image(1), "a b", "x")])
    with pytest.raises(InputError, match="no operation 'mlp'"):
        _check([example], ["mlp"], ["single"], 1)
    with pytest.raises(InputError, match="no scope 'all'"):
        _check([example], ["ffn"], ["all"], 1)
    with pytest.raises(InputError, match="batch_size=0"):
        ablation(model, [example], batch_size=0)
    with pytest.raises(InputError, match="no image file"):
        ablation(model, [Example("missing.png", "a b")])
