"""Blocked attention equals attention weights zeroed behind the softmax, on a copy without edits."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import eager_copy, opened, padded, plain
from builders.generations import generated
from builders.prompts import encode
from embedlens import Batch, BlockAttention, InputError, Plan, Unsupported, VisualLM
from embedlens.interventions.engines.nnsight import bound, store_edits
from families.zoo import READABLE, built
from oracles.knockouts import knocked_out, longer, mixers_of
from oracles.selected_tokens import (
    BOS,
    BOX,
    EVERY,
    LAST,
    NOT_BOX,
    TEXT,
    VISUAL,
    Tokens,
    pairs,
    visual,
)
from oracles.torch_hooks import attached
from tolerances import ACCUMULATED, EQUAL, MOVED

N = tiny.LAYERS

# Attention implementations that transformers gives a family's vision tower or decoder no choice of.
EAGER_ONLY = ("fast_vlm", "paligemma2")
# Its own sdpa and eager logits differ by 1.5e-5 where nothing is edited.
NOISY = ("minicpmv4_6",)
# No layer has a mask over keys, or it is not known which module receives it.
NOWHERE = ("gemma3n", "glm5_next", "inkling_mm_model", "mistral_large4")
GENERATING = tuple(
    (
        "llava qwen2_5_vl gemma3 internvl paligemma idefics3 mistral3 exaone4_5 llama4 gemma4 "
        "qwen3_vl"
    ).split()
)
PADDED = tuple(
    "llava qwen2_5_vl qwen3_vl gemma3 internvl paligemma idefics3 mistral3 llama4".split()
)


@functools.cache
def eager(kind: str, attn: str, twin: Any) -> Any:
    return eager_copy(twin(kind, attn).plain)


CASES = {
    "visual-visual": (VISUAL, VISUAL, (0, 2)),
    "text-visual": (TEXT, VISUAL, (0, 1, 2, 3)),
    "visual-text": (
        NOT_BOX,
        Tokens("text & ~bos", lambda i, m: TEXT.prompt(i, m) & ~BOS.prompt(i, m)),
        (1,),
    ),
    "last-visual": (LAST, VISUAL, (N - 1,)),
    "box-text": (TEXT, BOX, (1, 2)),
    "everyone-box": (NOT_BOX, BOX, (0, 3)),
}


HOW: dict[str, dict[str, Any]] = {
    "renormalised": {},
    "zeroed": {"renormalise": False},
    "collapsed": {"renormalise": False, "collapse": True},
}


def knocked(how: str, mixers: Any, keys: Tensor) -> Any:
    """``keys`` [sample, token]: the first of them gets what is taken, where anything does."""
    first = keys.int().argmax(1) if how == "collapsed" else None
    return knocked_out(mixers, renormalise=how == "renormalised", collapse_to=first)


def oracle(
    model: Any, layers: tuple[int, ...], blocked: Tensor, inputs: Any, how: str = "renormalised"
) -> Tensor:
    mixers = mixers_of(model, model.model.language_model.layers)
    with knocked(how, {mixers[layer]: blocked for layer in layers}, blocked.any(1)):
        logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


@pytest.mark.parametrize(("queries", "keys", "layers"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["middle", "ragged"])
def test_forward_equals_weights_zeroed_behind_the_softmax(
    twin: Any,
    attn: str,
    name: str,
    how: str,
    queries: Tokens,
    keys: Tokens,
    layers: tuple[int, ...],
) -> None:
    model, copied = twin("llama", attn).model, eager("llama", attn, twin)
    batch = encode(model, name)
    real = batch.inputs["attention_mask"].bool()
    expected = oracle(copied, layers, pairs(queries, keys, batch), batch.inputs, how)
    clean = oracle(copied, (), pairs(queries, keys, batch), batch.inputs)
    pair = {"queries": queries.text, "keys": keys.text}
    plan = Plan(BlockAttention(**pair, layers=list(layers), **HOW[how]))
    found = model.run(batch, plan, logits="all").logits
    assert float((found - expected)[real].abs().max()) < EQUAL
    assert float((clean - expected)[real].abs().max()) > MOVED


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["middle", "ragged"])
def test_weights_read_in_a_trace_are_those_in_force(twin: Any, name: str, how: str) -> None:
    model, copied = twin("llama", "eager").model, eager("llama", "eager", twin)
    batch, layer = encode(model, name), 2
    blocked = pairs(LAST, VISUAL, batch)
    mixers = mixers_of(copied, copied.model.language_model.layers)
    kept: list[Tensor] = []
    handle = mixers[layer].register_forward_hook(lambda _, __, output: kept.append(output[1]))
    with torch.no_grad(), knocked(how, {mixers[layer]: blocked}, blocked.any(1)):
        copied(**batch.inputs, use_cache=False)
    handle.remove()
    plan = Plan(BlockAttention(queries="last", keys="visual", layers=layer, **HOW[how]))
    with model.trace(batch, plan):
        found = model.layers[layer].self_attn.output[1].save()
    real = batch.inputs["attention_mask"].bool()
    assert float((found - kept[0]).transpose(1, 2)[real].abs().max()) < EQUAL
    with model.trace(batch):
        clean = model.layers[layer].self_attn.output[1].save()
    assert float((found - clean).abs().max()) > MOVED


GENERATED = {
    "prefill": (TEXT, VISUAL, "prefill"),
    "decode": (TEXT, VISUAL, "decode"),
    "all": (EVERY, BOX, "all"),
    "all-last": (LAST, VISUAL, "all"),
    "decode-from-text": (
        LAST,
        Tokens("text & ~bos & ~generated", lambda i, m: TEXT.prompt(i, m) & ~BOS.prompt(i, m)),
        "decode",
    ),
}


@pytest.mark.parametrize(("queries", "keys", "phase"), GENERATED.values(), ids=GENERATED)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["middle", "ragged"])
@pytest.mark.parametrize("how", HOW)
def test_generation_equals_whole_sequences_recomputed(
    twin: Any, attn: str, name: str, how: str, queries: Tokens, keys: Tokens, phase: str
) -> None:
    model, copied = twin("llama", attn).model, eager("llama", attn, twin)
    batch, layers = encode(model, name), (0, 1, 3)
    if "BOX" in str(keys) or keys is BOX:
        queries = Tokens(
            "(visual | text) & ~box[0:2, 1:3]", lambda i, m: m.bool() & ~BOX.prompt(i, m), True
        )
    pair = {"queries": queries.text, "keys": keys.text}
    plan = Plan(BlockAttention(**pair, layers=list(layers), phase=phase, **HOW[how]))
    ids, logits = generated(model, plan, batch, 4)
    inputs = longer("llava", batch.inputs, ids)
    expected = oracle(copied, layers, pairs(queries, keys, batch, 4, phase), inputs, how)
    clean = oracle(copied, (), pairs(queries, keys, batch, 4, phase), inputs)
    for step, found in enumerate(logits):
        position = batch.length - 1 + step
        assert float((found - expected[:, position]).abs().max()) < EQUAL, step
    moved = float((clean - expected)[:, batch.length - 1 :].abs().max())
    assert moved > MOVED
    first = float((clean - expected)[:, batch.length - 1].abs().max())
    assert phase != "decode" or first < EQUAL


@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
def test_scores_equal_whole_sequences_recomputed(twin: Any, phase: str) -> None:
    model, copied = twin().model, eager("llama", "sdpa", twin)
    batch = encode(model, "ragged")
    plan = Plan(BlockAttention(queries="text", keys="visual", layers="1-2", phase=phase))
    answers = ["red star", "a b c d", "blue", "x"]
    scores = model.score(batch, answers, plan)
    for row, answer in enumerate(answers):
        ids = torch.tensor([[tiny.VOCABULARY.index(word) for word in answer.split()]] * len(batch))
        inputs = longer("llava", batch.inputs, ids)
        blocked = pairs(TEXT, VISUAL, batch, ids.shape[1], phase)
        logits = oracle(copied, (1, 2), blocked, inputs)[row, batch.length - 1 : -1]
        expected = logits.double().log_softmax(-1).gather(1, ids[row][:, None]).sum()
        assert float(scores.logprob[row]) == pytest.approx(float(expected), abs=ACCUMULATED)


# ---------------------------------------------------------------- every family


def text_and_visual(model: VisualLM, batch: Batch) -> Tensor:
    seen = model.anatomy.visual_mask(batch.inputs)
    text = batch.inputs["attention_mask"].bool() & ~seen
    return text[:, :, None] & seen[:, None, :]


def maskable(model: VisualLM) -> list[int]:
    return [i for i in range(model.n_layers) if f"knockout:{i}" not in model.anatomy.refusals]


def check(name: str, attn: str, batch: Batch, how: str = "renormalised") -> None:
    model, copied = opened(name, attn), plain(name)
    layers = maskable(model)
    mixers = mixers_of(copied, copied.get_submodule(model.anatomy.decoder).layers)
    blocked, real = text_and_visual(model, batch), batch.inputs["attention_mask"].bool()
    with torch.no_grad():
        clean = copied(**batch.inputs).logits
    with knocked(how, {mixers[layer]: blocked for layer in layers}, blocked.any(1)):
        expected = copied(**batch.inputs).logits
    plan = Plan(BlockAttention(queries="text", keys="visual", layers=layers, **HOW[how]))
    found = model.run(batch, plan, logits="all").logits
    finite = clean[real].isfinite()
    tolerance = EQUAL * max(1.0, float(clean[real][finite].std())) * (3 if name in NOISY else 1)
    assert float((found - expected)[real][finite].abs().max()) < tolerance
    assert float((clean - expected)[real][finite].abs().max()) > MOVED


@pytest.mark.parametrize(
    ("attn", "how"),
    [
        ("sdpa", "renormalised"),
        ("eager", "renormalised"),
        ("sdpa", "zeroed"),
        ("eager", "zeroed"),
        ("sdpa", "collapsed"),
    ],
)
@pytest.mark.parametrize("name", [n for n in READABLE if n not in NOWHERE])
def test_every_family_equals_weights_zeroed_behind_the_softmax(
    name: str, attn: str, how: str
) -> None:
    if name in EAGER_ONLY and attn == "sdpa":
        with pytest.raises(ValueError, match="scaled_dot_product_attention"):
            opened(name, attn)
        return
    check(name, attn, opened(name, attn).batch(built(name).inputs), how)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", PADDED)
def test_padded_batches_of_families_equal_weights_zeroed(name: str, how: str, attn: str) -> None:
    batch = padded(name, opened(name, attn))
    assert not batch.inputs["attention_mask"].all()
    check(name, attn, batch, how)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("how", ["renormalised", "zeroed"])
@pytest.mark.parametrize("name", GENERATING)
def test_generations_of_families_equal_whole_sequences_recomputed(
    name: str, how: str, attn: str
) -> None:
    model, copied, count = opened(name, attn), plain(name), 4
    batch = model.batch(built(name).inputs)
    plan = Plan(BlockAttention(queries="text", keys="visual", phase="all", **HOW[how]))
    ids, logits = generated(model, plan, batch, count)
    inputs = longer(name, batch.inputs, ids)
    seen = model.anatomy.visual_mask(inputs)
    text = inputs["attention_mask"].bool() & ~seen
    layers = mixers_of(copied, copied.get_submodule(model.anatomy.decoder).layers)
    with knocked(how, dict.fromkeys(layers, text[:, :, None] & seen[:, None, :]), seen):
        expected = copied(**inputs).logits
    with torch.no_grad():
        clean = copied(**inputs).logits
    spread = max(1.0, float(clean.std()))
    for step, found in enumerate(logits):
        gap = found - expected[:, batch.length - 1 + step]
        assert float(gap.abs().max()) < EQUAL * spread, step
    assert float((clean - expected)[:, -1].abs().max()) > MOVED


# ---------------------------------------------------------------- composition, nothing, refusals


def test_two_blocks_are_their_union_in_any_order(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    halves = [
        BlockAttention(queries="text", keys="box[0:2, 0:4]"),
        BlockAttention(queries="text", keys="box[2:4, 0:4]"),
    ]
    whole = model.run(batch, Plan(BlockAttention(queries="text", keys="visual"))).logits
    for order in (halves, halves[::-1]):
        assert torch.equal(model.run(batch, Plan(*order)).logits, whole)
    assert not torch.equal(model.run(batch, Plan(halves[0])).logits, whole)


def test_the_papers_layer_0_is_two_operations(twin: Any) -> None:
    """docs/method.md (a4): text reads one visual token in place of all, the others read none."""
    model, copied = twin().model, eager("llama", "sdpa", twin)
    batch = encode(model, "middle")
    seen = batch.inputs["input_ids"] == tiny.IMAGE_ID
    first = int(seen[0].int().argmax())
    how = {"layers": 0, "renormalise": False}
    plan = Plan(
        BlockAttention(queries="text", keys="visual", collapse=True, **how),
        BlockAttention(queries="visual", keys="visual", **how),
    )
    mixer = copied.model.language_model.layers[0].self_attn
    original = torch.nn.functional.softmax
    inside: list[int] = []

    def softmax(scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = original(scores, *args, **kwargs)
        if inside:
            text = ~seen[0]
            mass = weights[..., seen[0]].sum(-1)
            weights[:, :, first:, seen[0]] = 0
            weights[:, :, text, first] = mass[:, :, text]
        return weights

    handles = [
        mixer.register_forward_pre_hook(lambda *_: inside.append(1)),
        mixer.register_forward_hook(lambda *_: inside.clear()),
    ]
    swapped = mock.patch.object(torch.nn.functional, "softmax", softmax)
    with attached(handles), swapped, torch.no_grad():
        expected = copied(**batch.inputs).logits
    found = model.run(batch, plan, logits="all").logits
    assert float((found - expected).abs().max()) < EQUAL


def test_blocking_nothing_changes_no_bit_and_has_to_be_allowed(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "middle")
    # The tokens in front of the image cannot see it anyway.
    nothing = {"queries": "bos", "keys": "visual"}
    with pytest.raises(InputError, match="nothing is blocked"):
        model.run(batch, Plan(BlockAttention(**nothing)))
    clean = model.run(batch, logits="all").logits
    plan = Plan(BlockAttention(**nothing, allow_empty=True))
    assert torch.equal(model.run(batch, plan, logits="all").logits, clean)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_query_without_any_key_left_is_refused_by_name(twin: Any, attn: str) -> None:
    model = twin("llama", attn).model
    batch = encode(model, "ragged")
    first = int(batch.inputs["attention_mask"][0].argmax())
    plan = Plan(BlockAttention(queries="text", keys="text", layers="2-3"))
    with pytest.raises(InputError, match=rf"position {first} of sample 0 .* layer 2"):
        model.run(batch, plan)
    with pytest.raises(InputError, match="without any key"), model.trace(batch, plan):
        model.nn.output.save()
    alone = Plan(BlockAttention(queries="generated", keys="visual | text", phase="decode"))
    with pytest.raises(InputError, match=rf"position {batch.length} of sample 0"):
        model.generate(batch, alone, max_new_tokens=3, min_new_tokens=3)
    model.run(batch, Plan(BlockAttention(queries="text & ~bos", keys="visual | text & ~bos")))
    # Neither of these two leaves a query alone by itself.
    halves = [BlockAttention(queries="last", keys=k) for k in ("last", "(visual | text) & ~last")]
    for order in (halves, halves[::-1]):
        with pytest.raises(InputError, match="without any key"):
            model.run(batch, Plan(*order))


def test_a_window_can_leave_a_query_without_keys_and_a_prefix_can_save_one() -> None:
    """What is left is counted in the mask of the layer: windows take keys, prefixes give some."""
    windowed = opened("aya_vision", "sdpa")
    batch = windowed.batch(built("aya_vision").inputs)
    pair = {"queries": "visual", "keys": "visual | text & ~bos"}
    with pytest.raises(InputError, match="without any key"):
        windowed.run(batch, Plan(BlockAttention(**pair)))
    wide = [i for i, k in enumerate(windowed.anatomy.mixer_kinds) if k == "attention"]
    windowed.run(batch, Plan(BlockAttention(**pair, layers=wide)))
    prefixed = opened("paligemma", "sdpa")
    batch = prefixed.batch(built("paligemma").inputs)
    assert bool(visual_first(prefixed, batch))
    prefixed.run(batch, Plan(BlockAttention(queries="visual", keys="visual")))


def visual_first(model: VisualLM, batch: Batch) -> Tensor:
    return model.anatomy.visual_mask(batch.inputs)[0, 0]


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl", "minicpmv4_6"])
def test_layers_without_a_mask_over_keys_are_refused(name: str) -> None:
    model = opened(name, "sdpa")
    batch = model.batch(built(name).inputs)
    with pytest.raises(Unsupported, match="without a mask over keys"):
        model.run(batch, Plan(BlockAttention(queries="text", keys="visual")))


@pytest.mark.parametrize("name", NOWHERE)
def test_models_without_any_such_layer_are_refused(name: str) -> None:
    model = opened(name, "sdpa")
    batch = model.batch(built(name).inputs)
    with pytest.raises(Unsupported, match="mask over keys"):
        model.run(batch, Plan(BlockAttention(queries="text", keys="visual")))


def test_other_attention_implementations_are_refused(
    twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = twin().model
    batch = encode(model, "middle")
    mixer = model.hf.get_submodule(model.anatomy.mixer[0])
    monkeypatch.setattr(mixer.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(Unsupported, match="flex_attention"):
        Plan(BlockAttention(queries="text", keys="visual")).compile(model, batch)


@pytest.mark.parametrize("change", [{"boolean": False}, {"window": 4}])
def test_a_missing_mask_is_refused_where_it_cannot_mean_causal(
    twin: Any, change: dict[str, Any]
) -> None:
    """Eager attention without a mask sees the future; windows exist in masks only."""
    model = twin().model
    batch = encode(model, "middle")
    program = Plan(BlockAttention(queries="text", keys="visual")).compile(model, batch)
    actions = [bound(step, program.scope) for step in program.steps]
    target = store_edits(model.nn, [(action, {**step, **change}) for action, step in actions])
    with pytest.raises(ValueError, match="received no mask"), target.trace(**batch.inputs):
        target.output.logits.save()


@pytest.mark.parametrize(
    ("attn", "how"), [("eager", "renormalised"), ("sdpa", "zeroed"), ("sdpa", "collapsed")]
)
def test_queries_that_lose_nothing_keep_every_bit(twin: Any, attn: str, how: str) -> None:
    """Neither those that are not named, nor those that could not see the keys anyway."""
    model = twin("llama", attn).model
    batch = encode(model, "middle")
    plan = Plan(BlockAttention(queries="text", keys="visual", layers=N - 1, **HOW[how]))
    clean, found = (model.run(batch, p, logits="all").logits[0] for p in (None, plan))
    end = int((batch.inputs["input_ids"][0] == tiny.IMAGE_ID).nonzero().max()) + 1
    assert torch.equal(found[:end], clean[:end])
    assert not (found[end:] == clean[end:]).all(-1).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": "text"}, "keys"),
        ({"queries": "text", "keys": "visal"}, "visal"),
        ({"queries": "text", "keys": "visual", "tokens": "bos"}, "tokens"),
        ({"queries": "text", "keys": "visual", "layers": "first"}, "layers"),
        ({"queries": "text", "keys": "visual", "collapse": True}, "renormalise"),
    ],
)
def test_what_is_no_block_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockAttention(**fields)


def test_gradients_flow_through_a_block(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "middle")
    where = visual(batch.inputs["input_ids"], batch.inputs["attention_mask"])
    plan = Plan(BlockAttention(queries="text", keys="visual"))
    with model.trace(batch, plan, grad=True):
        entering = model.layers[0].input
        entering.requires_grad_()
        with model.nn.output.logits[0, -1].sum().backward():
            grad = entering.grad.save()
    assert not grad[where].any()
    assert grad[~where].abs().max() > MOVED
