"""Compared plans: outcomes equal hooks, nothing changes nothing, and nulls are not claimed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

import tiny
from builders.results import compared_questions, comparison
from embedlens import (
    AblateAttention,
    Example,
    InputError,
    Plan,
    PruneTokens,
    ReplaceTokens,
    Result,
    ScaleTokens,
    VisualLM,
    ZeroFFN,
    compare,
)
from embedlens.analyses import find
from embedlens.analyses.comparison_of_plans.named_plans import UNTOUCHED, NamedPlans
from embedlens.analyses.comparison_of_plans.paired_table import METRICS, paired_table
from embedlens.analyses.select_rows import one, select
from embedlens.lens.scenes import scenes
from oracles.torch_hooks import attached, leaving
from tolerances import EQUAL, RECOMPUTED

EOS = tiny.VOCABULARY.index("</s>")
PROMPTS = ("what is this ?", "where is the red star ?", "a b")
PLANS: dict[str, Plan | None] = {
    "no FFN": Plan(ZeroFFN(layers="1-2")),
    "nothing": Plan(),
    "no attention": Plan(AblateAttention(layers=0)),
    "no FFN again": Plan(ZeroFFN(layers=[1, 2])),
}


@pytest.fixture(scope="module")
def model(twin: Any) -> VisualLM:
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


@pytest.fixture(scope="module")
def result(model: VisualLM, examples: list[Example]) -> Result:
    return compare(model, examples, PLANS, batch_size=4, max_new_tokens=3)


def zeroing(plain: Any, condition: str, visual: torch.Tensor) -> list[Any]:
    """Plain hooks that do to the visual positions of a prompt what a condition does."""

    def zero(states: torch.Tensor) -> torch.Tensor:
        if states.shape[1] < visual.shape[1]:
            return states
        states = states.clone()
        states[:, : visual.shape[1]][visual] = 0
        return states

    layers = plain.model.language_model.layers
    modules = {
        UNTOUCHED: [],
        "no FFN": [layers[1].mlp, layers[2].mlp],
        "no attention": [layers[0].self_attn],
    }
    return [module.register_forward_hook(leaving(zero)) for module in modules[condition]]


def by_hand(plain: Any, example: Example, condition: str) -> dict[str, Any]:
    """One example alone: its answer's log-probability, what is said first, what is written."""
    processor = tiny.processor()
    content = [{"type": "image"}, {"type": "text", "text": example.prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = dict(processor(text=text, images=example.images, return_tensors="pt"))
    inputs.pop("mm_token_type_ids", None)
    visual = inputs["input_ids"] == tiny.IMAGE_ID
    answer = processor.tokenizer(example.answer, add_special_tokens=False).input_ids
    answer = [*answer, EOS]
    with attached(zeroing(plain, condition, visual)), torch.no_grad():
        written = plain.generate(**inputs, max_new_tokens=3, do_sample=False)
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = plain(**whole).logits[0, -len(answer) - 1 : -1].double().log_softmax(-1)
    return {
        "logprob": float(logits.gather(1, torch.tensor(answer)[:, None]).sum()),
        "accuracy": bool((logits.argmax(-1) == torch.tensor(answer)).all()),
        "first": logits[0],
        "written": written[0, visual.shape[1] :].tolist(),
    }


@pytest.mark.parametrize("condition", ["no FFN", "no attention"])
def test_outcomes_equal_those_under_plain_hooks(
    twin: Any, result: Result, examples: list[Example], condition: str
) -> None:
    number = result.meta["plans"][condition]
    for i, example in enumerate(examples):
        clean, own = (by_hand(twin().plain, example, name) for name in (UNTOUCHED, condition))
        found = {name: float(values[number, i]) for name, values in result.tensors.items()}
        kl = torch.nn.functional.kl_div(
            own["first"], clean["first"], log_target=True, reduction="sum"
        )
        assert found["kl"] == pytest.approx(float(kl), abs=RECOMPUTED)
        assert found["logprob"] == pytest.approx(own["logprob"], abs=RECOMPUTED)
        assert found["accuracy"] == own["accuracy"]
        assert found["flips"] == (own["written"] != clean["written"])
        assert float(result.tensors["logprob"][0, i]) == pytest.approx(
            clean["logprob"], abs=RECOMPUTED
        )


def test_the_outcomes_are_not_all_alike(result: Result) -> None:
    assert 0 < result.tensors["flips"][1:].mean() < 1
    assert result.tensors["kl"][1:].min() > 0


def test_equal_plans_are_run_once_and_nothing_is_exactly_nothing(result: Result) -> None:
    assert result.meta["plans"] == {
        "no FFN": 1, "nothing": 0, "no attention": 2, "no FFN again": 1
    }  # fmt: skip
    rows = select(result.frame, condition="nothing")
    assert len(rows) == 4 * 3
    assert (rows["difference"] == 0).all()
    assert (rows.loc[rows["metric"].isin(["kl", "flips"]), "value"] == 0).all()


def test_what_changes_no_bit_has_exactly_zero_everywhere(
    model: VisualLM, examples: list[Example]
) -> None:
    """Run beside a plan that does change something, in passes that it may share."""
    plans = {"times one": Plan(ScaleTokens(factor=1.0)), "no FFN": PLANS["no FFN"]}
    found = compare(model, examples, plans, batch_size=4, max_new_tokens=3)
    assert (select(found.frame, condition="times one")["difference"] == 0).all()
    assert (select(found.frame, condition="no FFN", metric="kl")["difference"] > 0).all()


def test_the_table_is_the_mean_of_the_examples(result: Result, examples: list[Example]) -> None:
    tasks = np.array([example.task for example in examples])
    for row in result.frame.to_dict("records"):
        here = np.ones(6, bool) if row["task"] == "all" else tasks == row["task"]
        values = result.tensors[row["metric"]].numpy()[:, here]
        own = values[result.meta["plans"].get(row["condition"], 0)]
        assert row["value"] == pytest.approx(own.mean())
        assert (row["examples"], row["images"]) == (here.sum(), 3)
        if row["condition"] != UNTOUCHED:
            clean = values[0] if METRICS[row["metric"]].own else 0
            assert row["difference"] == pytest.approx((own - clean).mean())
    counted = result.frame.groupby("task").size()
    # Four conditions and four measures; the untouched model has a value of its own in two.
    assert (counted == 4 * 4 + 2).all()


def test_own_answers_are_agreed_with_by_the_untouched_model(model: VisualLM) -> None:
    rows = [Example(tiny.image(i), PROMPTS[i % 3]) for i in range(6)]
    found = compare(model, rows, {"no FFN": PLANS["no FFN"]}, max_new_tokens=3)
    assert one(found.frame, condition=UNTOUCHED, metric="accuracy")["value"] == 1.0
    accuracy, flips = found.tensors["accuracy"][1], found.tensors["flips"][1]
    assert torch.equal(accuracy, 1 - flips)
    assert 0 < accuracy.mean() < 1
    assert found.meta["reference"] == "the untouched model's own answer"
    assert all(isinstance(answer, str) for answer in found.meta["answers"])


def test_divergence_alone_needs_no_answer_and_is_the_same(
    model: VisualLM, examples: list[Example], result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the distributions of the plans do not fit into memory together."""
    monkeypatch.setattr(VisualLM, "score_many", None)
    monkeypatch.setattr(VisualLM, "generate_details", None)
    monkeypatch.setattr("embedlens.analyses.comparison_of_plans.outcomes._DISTRIBUTIONS", 1)
    steps: list[tuple[int, int]] = []
    found = compare(
        model,
        examples,
        PLANS,
        metrics=["kl"],
        batch_size=4,
        progress=lambda _, done, total: steps.append((done, total)),
    )
    assert torch.allclose(found.tensors["kl"], result.tensors["kl"], atol=RECOMPUTED)
    assert steps == [(n, 6) for n in range(1, 7)]


def test_labels_reach_the_plans(model: VisualLM, examples: list[Example]) -> None:
    told: list[int] = []

    def label(batch: Any, part: Any) -> Any:
        told.extend(part)
        return batch.with_tokens(corner=batch.visual.row == 0)

    plans = {
        "corner": Plan(ZeroFFN(tokens="corner")),
        "same": Plan(ZeroFFN(tokens="box[0:1, 0:4]")),
    }
    found = compare(model, examples, plans, metrics=["kl"], label=label, batch_size=4)
    assert told == list(range(6))
    assert torch.allclose(*found.tensors["kl"][1:], atol=EQUAL)


def test_an_image_that_is_destroyed_differs_and_a_patch_less_does_not() -> None:
    shipped = VisualLM.load(device="cpu")
    shown = scenes(10, n_objects=1)
    rows = [
        Example(scene.image(), q.text, q.answer, q.task)
        for scene in shown
        for q in scene.questions(1, tasks=["color"])
    ]
    plans = {
        "destroyed": Plan(ReplaceTokens(by="zero")),
        "a corner": Plan(PruneTokens(tokens="box[0:1, 0:1]")),
    }
    controls = {"destroyed": [plans["a corner"].control(seed) for seed in range(2)]}
    found = compare(shipped, rows, plans, controls=controls, metrics=["logprob", "kl"])
    assert set(select(found.frame, condition="destroyed")["verdict"]) == {"differs"}
    assert set(select(found.frame, condition="a corner")["verdict"]) == {"agrees"}
    row = one(found.frame, condition="destroyed", metric="kl")
    both = found.tensors["kl"][found.meta["controls"]["destroyed"]].mean(0)
    assert row["control"] == pytest.approx(float(both.mean()), abs=1e-3)
    assert row["control_p_holm"] < 0.05


def test_a_plan_that_cannot_be_carried_out_is_named(
    model: VisualLM, examples: list[Example]
) -> None:
    plans = {"good": PLANS["no FFN"], "too deep": Plan(ZeroFFN(layers=99))}
    with pytest.raises(InputError, match=r"^'too deep': "):
        compare(model, examples, plans)
    with pytest.raises(InputError, match=r"^'the control of good': "):
        compare(model, examples, {"good": Plan()}, controls={"good": plans["too deep"]})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"plans": {}}, "no plans to compare"),
        ({"plans": {UNTOUCHED: Plan()}}, "another name"),
        ({"controls": {"b": Plan()}}, "'b', which is none of the plans"),
        ({"controls": {"a": "b"}}, "the control 'b' of 'a' is none"),
        ({"controls": {"a": []}}, "has no plan"),
        ({"metrics": ["speed"]}, "no measure 'speed'"),
        ({"metrics": []}, "nothing to measure"),
        ({"margins": {"speed": 1}}, "no measure 'speed'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_refusals_say_what_is_wrong(
    model: VisualLM, examples: list[Example], given: dict[str, Any], told: str
) -> None:
    plans = given.pop("plans", {"a": PLANS["no FFN"]})
    with pytest.raises(InputError, match=told):
        compare(model, examples, plans, **given)


def test_a_planted_change_is_found_beyond_its_control_and_corrected() -> None:
    frame = comparison().frame
    rows = select(frame, task="all", metric="logprob")
    planted, weak, none = (one(rows, condition=name) for name in ("strong", "weak", "none"))
    assert planted["verdict"] == "differs"
    assert one(frame, task="all", metric="accuracy", condition="strong")["verdict"] == "differs"
    assert planted["p_holm"] < 0.05
    assert planted["control_p_holm"] < 0.05
    assert none["verdict"] == "agrees"
    assert weak["difference"] > planted["difference"]
    assert np.isnan(none["control_p_holm"])


def test_all_tests_of_a_family_are_corrected_together() -> None:
    frame = comparison().frame
    for name in ("p", "control_p"):
        for family in (frame["task"] == "all", frame["task"] != "all"):
            ps = frame.loc[family, name].to_numpy()
            corrected = frame.loc[family, f"{name}_holm"].to_numpy()
            known = np.flatnonzero(~np.isnan(ps))
            assert len(known) > 2
            order, largest = known[np.argsort(ps[known])], 0.0
            for rank, i in enumerate(order):
                largest = max(largest, min(1.0, ps[i] * (len(known) - rank)))
                assert corrected[i] == pytest.approx(largest)


@pytest.mark.full
def test_of_conditions_with_shuffled_labels_one_study_in_twenty_claims_anything() -> None:
    """Which condition an outcome came from is drawn within each image: nothing differs."""
    questions, n, claimed, beyond = compared_questions(32), 80, 0, 0
    plans = {name: Plan(ZeroFFN(layers=i)) for i, name in enumerate("abc")}
    named = NamedPlans.of_names(plans, {"a": "b", "c": "b"})
    margins = {"accuracy": 0.05, "logprob": 0.1}
    for seed in range(n):
        rng = np.random.default_rng(seed)
        skill = rng.normal(size=32) + rng.normal(size=(4, 32)) / 2
        accuracy, logprob = (skill > -1).astype(float), -np.exp(-skill)
        order = np.stack([rng.permutation(4) for _ in range(16)], 1).repeat(2, axis=1)
        mixed = {
            name: np.take_along_axis(values, order, 0)
            for name, values in (("accuracy", accuracy), ("logprob", logprob))
        }
        rows = select(paired_table(mixed, named, questions, margins, seed), task="all")
        claimed += bool((rows["p_holm"] <= 0.05).any() or (rows["verdict"] == "differs").any())
        beyond += bool((rows["control_p_holm"] <= 0.05).any())
    for found in (claimed, beyond):
        assert binomtest(found, n, 0.05, alternative="greater").pvalue > 0.01, found


def test_findings_say_the_numbers_of_the_table() -> None:
    result = comparison()
    said = find("comparison").findings(result)
    rows = select(result.frame, task="all")
    strong = one(rows, condition="strong", metric="accuracy")
    assert f"strong (−{abs(100 * strong['difference']):.1f} points" in said[1]
    untouched = one(rows, condition=UNTOUCHED, metric="accuracy")
    assert f"{100 * untouched['value']:.1f} % of the 64 expected answers" in said[0]
    for metric, sentence in zip(METRICS, said[1:], strict=False):
        verdicts = select(rows, metric=metric)["verdict"]
        for verdict, words in (("differs", "more"), ("agrees", "less")):
            n = int((verdicts == verdict).sum())
            assert (f"by {words} than" in sentence) == bool(n)
            assert not n or f"under {n}: " in sentence
    assert "strong in" in said[-1]
    assert "none in" not in said[-1]
    table = find("comparison").table(result)  # type: ignore[misc]
    assert isinstance(table, pd.DataFrame)
    assert len(table) == 3 * 4 * 3


def test_no_finding_of_a_comparison_without_effects_claims_one() -> None:
    said = find("comparison").findings(comparison(effect=0.0))
    assert not [sentence for sentence in said if "by more than" in sentence]
    assert said[-1].startswith("No condition is shown to do other than its control")
