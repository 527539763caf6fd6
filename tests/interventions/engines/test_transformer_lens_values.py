"""Replaced, scaled and patched tokens on a TransformerLens bridge equal those on nnsight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

import tiny
from builders.bridges import bridge_of, close, ran, tiny_bridge
from builders.copies import opened
from builders.prompts import labelled
from embedlens import Batch, InputError, PatchTokens, Plan, ReplaceTokens, ScaleTokens, VisualLM
from families.family import noise
from families.zoo import built
from tolerances import EQUAL, MOVED

BRIDGED = ("llava", "gemma3", "idefics3", "mistral3", "qwen2_5_vl", "glm4v", "llama4")
PLANS = {
    "zero": Plan(ReplaceTokens(by="zero", layers="0,2")),
    "mean": Plan(ReplaceTokens(by="mean", layers=1)),
    "class-mean": Plan(ReplaceTokens(by="class-mean", layers=1)),
    "noise": Plan(ReplaceTokens(by="noise", layers="0,2", seed=4)),
    "scale": Plan(ScaleTokens(factor=0.2, layers=0)),
    "norm": Plan(ScaleTokens(norm_of="text", layers=1)),
    "attention": Plan(PatchTokens(source=0, target=1, site="attention")),
    "ffn": Plan(PatchTokens(source=0, target=2, site="ffn")),
    "ffn-back": Plan(PatchTokens(source=2, target=0, site="ffn")),
    "one-for-all": Plan(PatchTokens(source=1, target=1, from_tokens="bos")),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", BRIDGED)
def test_nnsight_and_transformer_lens_agree(name: str, plan: str) -> None:
    model, bridge = opened(name, "eager"), bridge_of(name)
    batch = labelled(model.batch(built(name).inputs))
    keep = batch.inputs["attention_mask"].bool()
    ours = model.run(batch, PLANS[plan], logits="all").logits
    theirs = ran(bridge, batch, fwd_hooks=PLANS[plan].to_fwd_hooks(bridge, batch))
    assert close(ours, theirs, keep) < EQUAL
    assert close(model.run(batch, logits="all").logits, ours, keep) > MOVED


@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3", "mistral3"])
def test_donors_are_run_on_the_bridge(name: str, tmp_path: Path) -> None:
    family, model, bridge = built(name), opened(name, "eager"), bridge_of(name)
    pictures = [noise(family.size, seed) for seed in (1, 2, 3, 4)]
    batch = model.encode(pictures[:2], [family.prompt, f"{family.prompt} red star ?"])
    donor = model.encode(pictures[2:], [f"{family.prompt} a b c", family.prompt])
    keep = batch.inputs["attention_mask"].bool()
    run = model.run(donor, capture=("residual", "ffn"))
    run.save(tmp_path / "run")
    plan = Plan(
        PatchTokens(source=1, target=1, states="there"),
        PatchTokens(source=2, target=1, site="ffn", states="there"),
        ReplaceTokens(by="mean", layers=2, states="there", tokens="random(like=bos)"),
    )
    ours = model.run(batch, plan.given(there=donor), logits="all").logits
    assert close(model.run(batch, logits="all").logits, ours, keep) > MOVED
    for given in (donor, run, tmp_path / "run"):
        hooks = plan.given(there=given).to_fwd_hooks(bridge, batch)
        assert close(ours, ran(bridge, batch, fwd_hooks=hooks), keep) < EQUAL


def tiny_batch(model: VisualLM) -> Batch:
    return model.encode(
        [tiny.image(0), tiny.image(1)], [tiny.PROMPTS["middle"], tiny.PROMPTS["end"]]
    )


def test_another_sample_s_tokens_on_a_padded_batch(twin: Callable[..., Any]) -> None:
    model, bridge = twin("llama", "eager").model, tiny_bridge()
    batch = tiny_batch(model)
    keep = batch.inputs["attention_mask"].bool()
    plan = Plan(ReplaceTokens(by="other", layers=1))
    ours = model.run(batch, plan, logits="all").logits
    theirs = ran(bridge, batch, fwd_hooks=plan.to_fwd_hooks(bridge, batch))
    assert close(ours, theirs, keep) < EQUAL


def test_a_word_is_measured_on_the_bridge(twin: Callable[..., Any]) -> None:
    model = twin("llama", "eager").model
    batch = tiny_batch(model)
    plan = Plan(ReplaceTokens(by="word", word="star", layers="0-1"))
    with pytest.raises(InputError, match="without a tokenizer"):
        plan.to_fwd_hooks(tiny_bridge(), batch)
    made = tiny.build().model
    bridge = build_bridge_from_module(
        made, type(made).__name__, hf_config=made.config, tokenizer=None
    )
    bridge.tokenizer = model.tokenizer
    ours = model.run(batch, plan, logits="all").logits
    theirs = ran(bridge, batch, fwd_hooks=plan.to_fwd_hooks(bridge, batch))
    assert close(ours, theirs, batch.inputs["attention_mask"].bool()) < EQUAL


@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
def test_a_bridge_generates_with_the_same_draws(twin: Callable[..., Any], phase: str) -> None:
    model, bridge = twin("llama", "eager").model, tiny_bridge()
    batch = model.encode([tiny.image(3)], [tiny.PROMPTS["middle"]])
    tokens = "visual" if phase == "prefill" else "visual | text"
    plan = Plan(
        ReplaceTokens(by="noise", tokens=tokens, layers=1, seed=6, phase=phase),
        ScaleTokens(norm_of="visual", tokens=tokens, layers=2, phase=phase),
    )
    hooks = plan.to_fwd_hooks(bridge, batch, generating=True)
    with bridge.hooks(fwd_hooks=hooks), torch.no_grad():
        out = bridge.generate(
            batch.inputs["input_ids"],
            pixel_values=batch.inputs["pixel_values"],
            attention_mask=batch.inputs["attention_mask"],
            max_new_tokens=6,
            do_sample=False,
            stop_at_eos=False,
            return_type="tokens",
            verbose=False,
        )
    written = model.tokenizer.decode(out[0, batch.length :], skip_special_tokens=True)
    assert model.generate(batch, plan, max_new_tokens=6, min_new_tokens=6) == [str(written)]
    assert model.generate(batch, max_new_tokens=6, min_new_tokens=6) != [str(written)]
