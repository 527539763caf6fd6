"""Heads on a TransformerLens bridge: plans that name them, and its cache of what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builders.bridges import bridge_of, close, ran, tiny_bridge
from builders.copies import opened
from builders.prompts import encode
from embedlens import AblateAttention, BlockAttention, Plan, ScaleAttention, Unsupported
from families.zoo import built
from tolerances import EQUAL, MOVED

BRIDGED = ("llava", "gemma3", "qwen2_5_vl", "glm4v", "llama4", "idefics3")
INSIDE = ("values", "attention_weights", "head_outputs", "neurons")
HOOKS = ("attn.hook_v", "attn.hook_pattern", "attn.hook_result", "mlp.hook_post")


@pytest.mark.quick("gemma3")
@pytest.mark.parametrize("name", BRIDGED)
def test_heads_are_ablated_there_as_here(name: str) -> None:
    model, bridge = opened(name, "eager"), bridge_of(name)
    batch = model.batch(built(name).inputs)
    plan = Plan(AblateAttention(layers="0-1", heads="1-2"))
    keep = batch.inputs["attention_mask"].bool()
    clean, ours = (model.run(batch, p, logits="all").logits for p in (None, plan))
    theirs = ran(bridge, batch, fwd_hooks=plan.to_fwd_hooks(bridge, batch))
    assert close(ours, theirs, keep) < EQUAL
    assert close(clean, theirs, keep) > MOVED


@pytest.mark.quick("llava")
@pytest.mark.parametrize("name", BRIDGED)
def test_keys_are_hidden_there_from_some_heads_as_here(name: str) -> None:
    model, bridge = opened(name, "eager"), bridge_of(name)
    batch = model.batch(built(name).inputs)
    plan = Plan(BlockAttention(queries="text", keys="visual", layers="0-1", heads="0,3"))
    keep = batch.inputs["attention_mask"].bool()
    clean, ours = (model.run(batch, p, logits="all").logits for p in (None, plan))
    with plan.attached(bridge, batch):
        theirs = ran(bridge, batch)
    assert close(ours, theirs, keep) < EQUAL
    assert close(clean, theirs, keep) > MOVED


def test_weights_behind_the_softmax_are_refused(twin: Any) -> None:
    plan = Plan(ScaleAttention(queries="text", keys="visual", factor=0.5))
    with pytest.raises(Unsupported, match="run the plan with VisualLM"):
        plan.to_fwd_hooks(tiny_bridge(), encode(twin().model, "middle"))


def test_what_goes_on_inside_layers_is_what_the_bridge_caches(twin: Any) -> None:
    model, bridge = twin().model, tiny_bridge()
    batch = encode(model, "middle")
    run = model.run(batch, capture=INSIDE, tokens="all", queries="all")
    cache = run.to_activation_cache()
    rest = {name: value for name, value in batch.inputs.items() if name != "input_ids"}
    before = bridge.cfg.use_attn_result
    bridge.cfg.use_attn_result = True
    try:
        with torch.no_grad():
            _, theirs = bridge.run_with_cache(batch.inputs["input_ids"], **rest)
    finally:
        bridge.cfg.use_attn_result = before
    names = [f"blocks.{layer}.{hook}" for layer in range(model.n_layers) for hook in HOOKS]
    assert sorted(cache.cache_dict) == sorted(names)
    for name in names:
        assert cache[name].shape == theirs[name].shape
        torch.testing.assert_close(cache[name], theirs[name], atol=EQUAL, rtol=EQUAL)
