"""The same plan on transformers with torch hooks, on nnsight and on a TransformerLens bridge.

Every engine has a copy of its own: a bridge changes the model it is booted from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.model_bridge.sources import build_bridge_from_module

import tiny
from builders.bridges import bridge_of, close, ran, tiny_bridge
from builders.copies import opened, plain
from embedlens import (
    AblateAttention,
    Batch,
    InputError,
    PatchTokens,
    Plan,
    Unsupported,
    VisualLM,
    ZeroFFN,
)
from embedlens.interventions import BlockAttention, InjectTokens, Operation, PruneTokens
from embedlens.lens.runs.plan_protocol import Pass
from families.family import noise
from families.zoo import READABLE, built, visual_lm
from oracles.family_edits import edited
from tolerances import EQUAL, LARGE, MEASURED, MOVED

# What the bridge boots without a hub; the zoo's other families it does not know.
BRIDGED = (
    *("emu3", "gemma3", "gemma4", "gemma4-moe", "gemma4_unified", "glm4v", "idefics3", "llama4"),
    *("llava", "llava_next", "llava_onevision", "llava_onevision_shrunk", "mistral3"),
    *("qwen2_5_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"),
)
# Visual features are added again between layers, so states cannot be carried across.
DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe")
PLANS = {
    "attention": Plan(AblateAttention(layers=1)),
    "ffn": Plan(ZeroFFN(layers="0,2")),
    "both": Plan(AblateAttention(layers="0-1"), ZeroFFN(layers="0-1")),
    "patch": Plan(PatchTokens(source=1, target=2)),
}


def check(name: str, batch: Batch, plan: str) -> None:
    model, keep = opened(name, "eager"), batch.inputs["attention_mask"].bool()
    clean = model.run(batch, logits="all").logits
    ours = model.run(batch, PLANS[plan], logits="all").logits
    assert close(clean, ours, keep) > MOVED
    bridge = bridge_of(name)
    theirs = ran(bridge, batch, fwd_hooks=PLANS[plan].to_fwd_hooks(bridge, batch))
    assert close(ours, theirs, keep) < EQUAL
    where = torch.zeros(keep.shape, dtype=torch.bool)
    where[batch.visual.sample.copy(), batch.visual.position.copy()] = True
    with edited(plain(name), name, plan, where), torch.no_grad():
        expected = plain(name)(**batch.inputs).logits
    assert close(expected, theirs, keep) < EQUAL


@pytest.mark.full
def test_every_family_the_bridge_boots_is_held_against_it() -> None:
    booted = set()
    for name in READABLE:
        try:
            bridge_of(name)
        except (ValueError, ImportError, AttributeError):
            continue
        booted.add(name)
    # Of several streams side by side there is no single one to edit.
    assert booted - {"gemma3n"} == set(BRIDGED)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", BRIDGED)
def test_transformers_nnsight_and_transformer_lens_agree(name: str, plan: str) -> None:
    batch = opened(name, "eager").batch(built(name).inputs)
    if plan == "patch" and name in DEEPSTACK:
        with pytest.raises(Unsupported, match="between layers"):
            PLANS[plan].to_fwd_hooks(bridge_of(name), batch)
        return
    check(name, batch, plan)


@pytest.mark.parametrize("plan", ["both", "patch"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "idefics3", "mistral3", "llava_next"])
def test_they_agree_on_a_padded_batch(name: str, plan: str) -> None:
    family = built(name)
    images = [noise(family.size, 1), noise(family.size, 2)]
    batch = opened(name, "eager").encode(images, [family.prompt, f"{family.prompt} red star ?"])
    assert not batch.inputs["attention_mask"].all()
    check(name, batch, plan)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "qwen3_vl", "llama4", "gemma4"])
def test_masks_are_edited_on_modules(name: str) -> None:
    """Also where the bridge keeps transformers' own attention and discards edits of patterns."""
    model, bridge = opened(name, "eager"), bridge_of(name)
    batch = model.batch(built(name).inputs)
    plan = Plan(
        BlockAttention(queries="text", keys="visual", layers="0-1"),
        ZeroFFN(layers=1, tokens="text"),
    )
    with pytest.raises(Unsupported, match=r"with plan\.attached"):
        plan.to_fwd_hooks(bridge, batch)
    keep = batch.inputs["attention_mask"].bool()
    clean = ran(bridge, batch)
    ours = model.run(batch, plan, logits="all").logits
    with plan.attached(bridge, batch):
        theirs = ran(bridge, batch)
    assert close(ours, theirs, keep) < EQUAL
    assert close(clean, theirs, keep) > MOVED
    assert torch.equal(ran(bridge, batch), clean)


@pytest.mark.parametrize("norm", ["raw", "matched"])
def test_tokens_enter_behind_added_features_there_too(norm: Any) -> None:
    model, bridge = opened("qwen3_vl", "eager"), bridge_of("qwen3_vl")
    batch = model.batch(built("qwen3_vl").inputs)
    plan = Plan(InjectTokens(layer=2, norm=norm))
    ours = model.run(batch, plan, logits="all").logits
    keep = torch.ones_like(batch.inputs["input_ids"], dtype=torch.bool)
    assert close(ran(bridge, batch), ours, keep) > MOVED
    with plan.attached(bridge, batch):
        assert close(ours, ran(bridge, batch), keep) < EQUAL


# ---------------------------------------------------------------- what else a plan does


def tiny_batch(model: VisualLM) -> Batch:
    return model.encode(
        [[tiny.image(0)], [tiny.image(1), tiny.image(2)]],
        [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]],
    )


MORE = {
    "nothing": Plan(),
    "order": Plan(
        PatchTokens(source=0, target=2, tokens="box[0:2, 0:2]"),
        PatchTokens(source=2, target=3, tokens="visual"),
        ZeroFFN(layers=2, tokens="text"),
    ),
    "to-the-end": Plan(PatchTokens(source=1, target=tiny.LAYERS)),
    "late": Plan(InjectTokens(layer=2), PruneTokens(tokens="box[0:2, 0:2]", layer=3)),
    # Rows never leave a bridge: its hooks see the prompt's positions.
    "pruned": Plan(PruneTokens(tokens="box[0:2, 0:2]")),
    "backwards": Plan(ZeroFFN(layers=0), PatchTokens(source=3, target=1, tokens="image[0]")),
}


@pytest.mark.parametrize("plan", MORE)
def test_a_bridge_carries_out_the_whole_plan(twin: Callable[..., Any], plan: str) -> None:
    model, bridge = twin("llama", "eager").model, tiny_bridge()
    batch = tiny_batch(model)
    keep = batch.inputs["attention_mask"].bool()
    ours = model.run(batch, MORE[plan], logits="all").logits
    with MORE[plan].attached(bridge, batch):
        theirs = ran(bridge, batch)
    assert close(ours, theirs, keep) < EQUAL
    moved = close(model.run(batch, logits="all").logits, ours, keep)
    assert moved > MOVED if plan != "nothing" else moved == 0


def test_no_hooks_for_an_empty_plan(twin: Callable[..., Any]) -> None:
    assert Plan().to_fwd_hooks(tiny_bridge(), tiny_batch(twin().model)) == []


@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
def test_a_bridge_generates_with_the_plan_in_force(twin: Callable[..., Any], phase: str) -> None:
    model, bridge = twin("llama", "eager").model, tiny_bridge()
    batch = model.encode([tiny.image(3)], [tiny.PROMPTS["middle"]])
    ids, pixels = batch.inputs["input_ids"], batch.inputs["pixel_values"]
    operations = [ZeroFFN(layers="all", tokens="text", phase=phase)]
    if phase != "decode":
        operations.append(PatchTokens(source=0, target=2))
    if phase == "all":
        operations.append(AblateAttention(layers=1, tokens="text", phase="decode"))
    plan = Plan(*operations)

    def write(within: Any) -> str:
        with within, torch.no_grad():
            out = bridge.generate(
                ids,
                pixel_values=pixels,
                attention_mask=batch.inputs["attention_mask"],
                max_new_tokens=6,
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
        return str(model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    ours = model.generate(batch, plan, max_new_tokens=6, min_new_tokens=6)[0]
    hooks = plan.to_fwd_hooks(bridge, batch, generating=True)
    assert write(bridge.hooks(fwd_hooks=hooks)) == ours
    assert write(plan.attached(bridge, batch, generating=True)) == ours
    clean = model.generate(batch, max_new_tokens=6, min_new_tokens=6)[0]
    assert write(bridge.hooks(fwd_hooks=[])) == clean
    assert clean != ours


# ---------------------------------------------------------------- what is refused


def test_an_edit_that_would_be_discarded_is_refused(
    twin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook point that only shows its value, as attention patterns are shown in some families."""
    batch = tiny_batch(twin().model)
    model = tiny.build().model
    bridge = build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, tokenizer=None
    )
    shown = bridge.blocks[1].mlp
    forward = type(shown).forward

    def only_shown(self: Any, states: Tensor) -> Tensor:
        out: Tensor = forward(self, states)
        return self.original_component(states) if self is shown else out

    monkeypatch.setattr(type(shown), "forward", only_shown)
    Plan(ZeroFFN(layers=0)).to_fwd_hooks(bridge, batch)
    with pytest.raises(Unsupported, match=r"discards what is written at blocks\.1\.mlp\.hook_out"):
        Plan(ZeroFFN(layers="0-1")).to_fwd_hooks(bridge, batch)


def test_hooks_refuse_another_pass_than_theirs(twin: Callable[..., Any]) -> None:
    model, bridge = twin("llama", "eager").model, tiny_bridge()
    batch = model.encode([tiny.image(0)], [tiny.PROMPTS["middle"]])
    other = model.encode([tiny.image(0)], [tiny.PROMPTS["end"]])
    plan = Plan(ZeroFFN(layers=1))
    hooks = plan.to_fwd_hooks(bridge, batch)
    with pytest.raises(InputError, match="made for a prompt of"):
        ran(bridge, other, fwd_hooks=hooks)
    with pytest.raises(InputError, match="decodes nothing"):
        Plan(ZeroFFN(layers=1, tokens="text", phase="decode")).to_fwd_hooks(bridge, batch)


def test_what_is_found_out_in_the_pass_is_refused_as_with_nnsight(twin: Callable[..., Any]) -> None:
    model, bridge = twin("llama", "eager").model, tiny_bridge()
    batch, plan = tiny_batch(model), Plan(BlockAttention(queries="text", keys="visual | text"))
    with pytest.raises(InputError, match=r"^BlockAttention.*without any key in layer 0") as ours:
        model.run(batch, plan)
    with plan.attached(bridge, batch), pytest.raises(InputError) as theirs:
        ran(bridge, batch)
    assert str(theirs.value) == str(ours.value)


def test_a_bridge_of_another_model_is_refused(twin: Callable[..., Any]) -> None:
    batch = visual_lm("emu3").batch(built("emu3").inputs)
    with pytest.raises(InputError, match="must be of the same model"):
        Plan(ZeroFFN(layers=1)).to_fwd_hooks(tiny_bridge(), batch)
    inputs = dict(batch.inputs)
    homeless = Batch(inputs, batch.visual, batch.prompts, batch.images)
    with pytest.raises(InputError, match="does not say where its model's parts are"):
        Plan(ZeroFFN(layers=1)).to_fwd_hooks(tiny_bridge(), homeless)


def test_a_step_without_a_form_in_transformer_lens_is_refused(
    twin: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = tiny_batch(twin().model)
    plan = Plan(ZeroFFN(layers=1))
    removing = Plan(PruneTokens(tokens="box[0:2, 0:2]", method="remove"))
    removing = removing.compile(twin().model, batch, Pass("forward"))
    monkeypatch.setattr(Plan, "compile", lambda *_: removing)
    for hooks_of in (plan.to_fwd_hooks, lambda *given: plan.attached(*given).__enter__()):
        with pytest.raises(Unsupported, match="no form in TransformerLens"):
            hooks_of(tiny_bridge(), batch)


@pytest.mark.parametrize(
    "operation",
    [
        BlockAttention(queries="text", keys="visual", layers=1, renormalise=False),
        PruneTokens(tokens="box[0:2, 0:2]", method="remove"),
    ],
    ids=lambda operation: str(operation.op),
)
def test_edits_inside_a_module_s_code_are_refused(
    twin: Callable[..., Any], operation: Operation
) -> None:
    model = twin("llama", "eager").model
    batch = model.encode([tiny.image(0)], [tiny.PROMPTS["middle"]])
    model.run(batch, Plan(operation))
    plan = Plan(operation)
    for hooks_of in (plan.to_fwd_hooks, lambda *given: plan.attached(*given).__enter__()):
        with pytest.raises(Unsupported, match="no form in TransformerLens"):
            hooks_of(tiny_bridge(), batch)


# ---------------------------------------------------------------- captures as an ActivationCache

EVERYTHING = ("residual", "attention", "ffn")
DECOMPOSED = ("llava", "gemma3", "idefics3", "mistral3", "qwen2_5_vl", "glm4v", "llama4")


@pytest.mark.parametrize("name", DECOMPOSED)
def test_a_run_as_activation_cache_is_what_the_bridge_caches(name: str) -> None:
    model, bridge = opened(name, "eager"), bridge_of(name)
    batch = model.batch(built(name).inputs)
    cache = model.run(batch, capture=EVERYTHING, tokens="all").to_activation_cache(bridge)
    assert isinstance(cache, ActivationCache)
    rest = {n: value for n, value in batch.inputs.items() if n != "input_ids"}
    with torch.no_grad():
        _, theirs = bridge.run_with_cache(batch.inputs["input_ids"], **rest)
    visual = np.zeros(batch.length, dtype=bool)
    visual[batch.visual.position] = True
    assert len(cache.cache_dict) == 4 * model.n_layers + 1
    for key, states in cache.cache_dict.items():
        if key != "hook_embed":
            assert torch.allclose(states, theirs[key], atol=LARGE), key
    # TransformerLens has the placeholder's embedding there.
    apart = (cache["hook_embed"] - theirs["hook_embed"])[0].abs().amax(-1)
    assert bool((apart[torch.tensor(visual)] > MOVED).all())
    assert torch.equal(cache["hook_embed"], cache["resid_pre", 0])


@pytest.mark.parametrize("name", DECOMPOSED)
@pytest.mark.parametrize("tokens", ["visual", "all"])
def test_its_decomposition_adds_up_at_visual_positions(name: str, tokens: str) -> None:
    model = opened(name, "eager")
    batch = model.batch(built(name).inputs)
    run = model.run(batch, capture=EVERYTHING, tokens=tokens)
    cache = run.to_activation_cache()
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels[0] == "embed"
    assert len(labels) == 1 + 2 * model.n_layers
    final = run.residual[model.n_layers]
    assert torch.allclose(parts.sum(0)[0], final, atol=MEASURED * float(final.abs().max()))
    stack = cache.accumulated_resid()
    assert torch.allclose(stack[-1][0], final)


def test_captures_that_do_not_add_up_are_refused() -> None:
    model = opened("qwen3_vl", "eager")
    batch = model.batch(built("qwen3_vl").inputs)
    with pytest.raises(Unsupported, match="not all that layer 0 adds"):
        model.run(batch, capture=EVERYTHING).to_activation_cache()
    cache = model.run(batch, capture="residual").to_activation_cache()
    assert "blocks.0.hook_resid_post" not in cache.cache_dict
    assert "blocks.3.hook_resid_post" in cache.cache_dict


def test_a_cache_needs_captures_of_equally_many_positions(twin: Callable[..., Any]) -> None:
    model = twin().model
    batch = tiny_batch(model)
    with pytest.raises(InputError, match="nothing was captured"):
        model.run(batch).to_activation_cache()
    with pytest.raises(InputError, match="equally many positions"):
        model.run(batch, capture="residual").to_activation_cache()
    alike = model.encode([tiny.image(0), tiny.image(1)], [tiny.PROMPTS["middle"]] * 2)
    run = model.run(alike, capture="residual")
    cache = run.to_activation_cache()
    assert cache["hook_embed"].shape == (2, tiny.CELLS, tiny.WIDTH)
    assert torch.equal(cache["resid_pre", 1].flatten(0, 1), run.residual[1])
    with pytest.raises(KeyError):
        cache.accumulated_resid(apply_ln=True)
