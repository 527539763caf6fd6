"""The real language model on a TransformerLens bridge, plain, under plans, and read there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.bridges import bridge_over, close, ran
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    PatchTokens,
    Plan,
    PruneTokens,
    ZeroFFN,
)
from real.planted_words import QUESTION, picture
from tolerances import EQUAL, LARGE, MOVED

HOOKS = {
    "attention": Plan(AblateAttention(layers="0-29")),
    "ffn": Plan(ZeroFFN(layers="1-4")),
    "both": Plan(ZeroFFN(layers="20-29"), AblateAttention(layers="12")),
    "patch": Plan(PatchTokens(source=2, target=20)),
}
MASKS = {
    "blocked": Plan(BlockAttention(queries="text", keys="visual", layers="0-20")),
    "pruned": Plan(PruneTokens(tokens="box[0:2, 0:3]", layer=3)),
}


@pytest.fixture(scope="module")
def bridge(countries: Any) -> Any:
    """Over a copy of its own: a bridge changes its model."""
    return bridge_over(copy.deepcopy(countries.plain))


@pytest.fixture(scope="module")
def batch(countries: Any) -> Batch:
    images = [picture([0, 0, 0, 1, 1, 1, 2, 2, 2]), picture([3, 4, 5, 6, 7, 8, 0, 1, 2])]
    return countries.model.encode(images, [QUESTION, f"{QUESTION} light? No,"])


def held(countries: Any, batch: Batch, plan: Plan, theirs: Tensor) -> None:
    """The same logits as ours, and others than without a plan."""
    keep = batch.inputs["attention_mask"].bool()
    ours = countries.model.run(batch, plan, logits="all").logits
    with torch.no_grad():
        clean = countries.plain(**batch.inputs).logits
    assert close(ours, theirs, keep) < LARGE
    assert close(clean, theirs, keep) > MOVED


def test_the_bridge_computes_what_transformers_does(
    countries: Any, bridge: Any, batch: Batch
) -> None:
    with torch.no_grad():
        expected = countries.plain(**batch.inputs).logits
    assert close(expected, ran(bridge, batch), batch.inputs["attention_mask"].bool()) < LARGE


@pytest.mark.parametrize("name", HOOKS)
def test_the_hooks_of_a_plan(countries: Any, bridge: Any, batch: Batch, name: str) -> None:
    hooks = HOOKS[name].to_fwd_hooks(bridge, batch)
    held(countries, batch, HOOKS[name], ran(bridge, batch, fwd_hooks=hooks))


@pytest.mark.parametrize("name", MASKS)
def test_a_plan_attached(countries: Any, bridge: Any, batch: Batch, name: str) -> None:
    before = ran(bridge, batch)
    with MASKS[name].attached(bridge, batch):
        theirs = ran(bridge, batch)
    held(countries, batch, MASKS[name], theirs)
    assert torch.equal(ran(bridge, batch), before)


def test_a_run_is_the_cache_that_the_bridge_fills(
    countries: Any, bridge: Any, batch: Batch
) -> None:
    model, single = countries.model, batch.subset([1])
    captured = ("residual", "attention", "ffn", "values", "attention_weights", "neurons")
    run = model.run(single, capture=captured, tokens="all", queries="all")
    cache = run.to_activation_cache(bridge)
    rest = {name: value for name, value in single.inputs.items() if name != "input_ids"}
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(single.inputs["input_ids"], **rest)
    assert len(cache.cache_dict) == 7 * model.n_layers + 1
    for key, states in cache.cache_dict.items():
        if key != "hook_embed":  # TransformerLens has the placeholder's embedding there
            size = float(theirs[key].abs().max())
            assert float((states - theirs[key]).abs().max()) < LARGE * size, key
    parts = cache.decompose_resid()
    final = cache["resid_post", model.n_layers - 1]
    assert float((parts.sum(0) - final).abs().max()) < EQUAL * float(final.abs().max())
