"""`embedlens check`: what it finds on models that work, that cannot, and that should and do not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import tiny
from embedlens import InputError, VisualLM
from embedlens.analyses.check import CHECKS, check_model
from embedlens.analyses.check.same_numbers import Differs, agree, same
from families.zoo import visual_lm

# Cannot do everything: what is refused on each.
LIMITED = {
    "gemma3n": {"residual stream", "ZeroFFN", "AblateAttention", "PatchTokens", "readouts"},
    "qwen3_5": {"attention masks"},
    "lfm2_vl": {"attention masks"},
    "qwen3_vl": {"patch_across"},
    "idefics2": {"place"},
}
# One of each kind of layout, mask, logits and layer; tests/test_captures_families.py and
# tests/test_interventions_families.py go through all families.
CHECKED = (
    *LIMITED,
    *("llava_next", "qwen2_5_vl", "internvl", "fuyu", "gemma3", "gemma4", "paligemma2"),
    *("llama4", "molmo2", "chameleon"),
)


def verdicts(report: Any) -> dict[str, str]:
    return {finding.name: finding.verdict for finding in report.findings}


@pytest.mark.parametrize("name", CHECKED)
def test_families_pass(name: str) -> None:
    report = check_model(visual_lm(name))
    assert [finding for finding in report.findings if finding.verdict == "failed"] == []
    assert report.passed
    refused = {what for what, verdict in verdicts(report).items() if verdict == "refused"}
    assert refused >= LIMITED.get(name, set())
    assert {"decoder", "padding", "forward", "generate", "score"} <= set(verdicts(report))


def test_a_plain_model_is_refused_nothing() -> None:
    report = check_model(visual_lm("llava"))
    assert set(verdicts(report).values()) == {"ok"}
    assert len(report.findings) >= 18
    found = json.loads(report.to_json())
    assert found["passed"]
    assert found["about"]["class"] == "LlavaForConditionalGeneration"
    assert {"torch", "transformers", "nnsight", "embedlens"} <= set(found["about"]["packages"])
    assert "nnsight 0" in report.versions


def test_a_forward_that_differs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "embedlens.analyses.check.passes.plain_logits",
        lambda model, inputs: model.hf(**inputs).logits.detach() * 1.01,
    )
    report = check_model(visual_lm("llava"))
    assert verdicts(report)["forward"] == "failed"
    assert not report.passed
    (finding,) = [finding for finding in report.findings if finding.name == "forward"]
    assert "largest difference" in finding.detail


def test_hooks_that_do_something_else_fail_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedlens.analyses.check.plans._zero", lambda states, index: states)
    found = verdicts(check_model(visual_lm("llava")))
    assert {found["ZeroFFN"], found["AblateAttention"]} == {"failed"}
    assert found["PatchTokens"] == "ok"


def test_a_generation_that_differs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisualLM, "generate", lambda *_, **__: ["something else"])
    found = verdicts(check_model(visual_lm("llava")))
    assert found["generate"] == "failed"


def test_padding_that_changes_results_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the attention mask a padded row sees its padding."""
    model = VisualLM(tiny.build().model, tiny.processor())
    run = model.run

    def careless(batch: Any, *plan: Any, **how: Any) -> Any:
        mask = batch.inputs["attention_mask"]
        careless_batch = type(batch)(
            {**batch.inputs, "attention_mask": torch.ones_like(mask)},
            batch.visual,
            batch.prompts,
            batch.images,
        )
        return run(careless_batch, *plan, **how)

    monkeypatch.setattr(model, "run", careless)
    assert verdicts(check_model(model))["padding"] == "failed"


def test_one_check_that_breaks_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("of all things")

    monkeypatch.setitem(CHECKS, "score", broken)
    report = check_model(visual_lm("llava"))
    (finding,) = [finding for finding in report.findings if finding.verdict == "failed"]
    assert finding.name == "score"
    assert finding.detail == "ZeroDivisionError: of all things"
    assert verdicts(report)["PatchTokens"] == "ok"


def test_the_attention_implementation_is_put_back() -> None:
    model = visual_lm("llava")
    configs = [model.hf.config, model.hf.config.text_config, model.hf.config.vision_config]
    before = [config._attn_implementation for config in configs]
    report = check_model(model)
    assert verdicts(report)["attention"] == "ok"
    assert [config._attn_implementation for config in configs] == before


def test_a_model_without_a_processor_cannot_be_checked() -> None:
    with pytest.raises(InputError, match="without a processor"):
        check_model(VisualLM(tiny.build().model))


def test_agreement_is_relative_and_infinities_must_match() -> None:
    large = torch.tensor([1000.0, -float("inf")])
    assert "0.02" in agree(large + 0.02, large)
    with pytest.raises(Differs, match="largest difference"):
        agree(large + 0.2, large)
    with pytest.raises(Differs, match="finite"):
        agree(torch.tensor([1000.0, 0.0]), large)
    with pytest.raises(Differs, match="finite"):
        agree(torch.tensor([float("nan"), -float("inf")]), large)
    with pytest.raises(Differs, match="shapes"):
        agree(large[:1], large)
    with pytest.raises(Differs, match="bit by bit"):
        same(torch.tensor([1.0]), torch.tensor([1.0]) + 1e-7)
