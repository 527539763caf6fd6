"""Captured attention weights equal those that eager attention makes, whatever kernel computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, flash_attention_mask, flex_attention_mask
from transformers.models.llama.modeling_llama import eager_attention_forward

import tiny
from builders.copies import eager_copy, opened, padded, plain
from builders.prompts import encode
from embedlens import Batch, BlockAttention, InputError, Plan, Run, Unsupported, VisualLM
from embedlens.lens.anatomy.mixer_kinds import MASKED
from families.zoo import READABLE, built
from oracles.eager_weights import scaled, softmax_changed, weights_of
from oracles.knockouts import knocked_out, mixers_of
from oracles.selected_tokens import TEXT, VISUAL, pairs
from tolerances import ACCUMULATED, EQUAL, MOVED, MOVED_A_LITTLE

# Transformers gives their towers or decoders no other attention.
EAGER_ONLY = ("fast_vlm", "paligemma2")
# No layer is known to attend by a softmax over all keys.
NOWHERE = ("gemma3n", "glm5_next", "inkling_mm_model", "mistral_large4")
PADDED = ("llava", "qwen2_5_vl", "gemma3", "paligemma", "llama4", "kimi_k25", "aya_vision")


def attending(model: VisualLM) -> dict[int, Any]:
    kinds, mixers = model.anatomy.mixer_kinds, model.anatomy.mixer
    return {i: mixers[i] for i, kind in enumerate(kinds) if kind in MASKED and mixers[i]}


def expected_of(model: VisualLM, copied: Any, batch: Batch) -> dict[int, Tensor]:
    with weights_of({i: copied.get_submodule(p) for i, p in attending(model).items()}) as kept:
        copied(**batch.inputs)
    return kept


def check(model: VisualLM, copied: Any, batch: Batch) -> None:
    expected = expected_of(model, copied, batch)
    run = model.run(batch, capture="attention_weights", queries="all")
    assert set(run.attention_weights) == set(expected)
    assert run.query_sample is not None
    assert len(run.query_sample) == int(batch.inputs["attention_mask"].sum())
    for layer, weights in expected.items():
        mine = weights[run.query_sample, :, run.query_position, : batch.length]
        # The layers in front ran another kernel than the oracle's.
        assert float((run.attention_weights[layer] - mine).abs().max()) < ACCUMULATED, layer


@pytest.mark.quick("llava", "gemma3", "llama4", "paligemma", "kimi_k25", "nemotron_h_omni")
@pytest.mark.parametrize("name", [n for n in READABLE if n not in NOWHERE])
def test_weights_of_every_family_equal_eager_ones(name: str) -> None:
    """Sliding and chunked windows, grouped and latent keys, prefixes, soft caps, running states."""
    model = opened(name, "eager" if name in EAGER_ONLY else "sdpa")
    check(model, plain(name), model.batch(built(name).inputs))


@pytest.mark.quick("gemma3")
@pytest.mark.parametrize("name", PADDED)
def test_weights_of_padded_batches_equal_eager_ones(name: str) -> None:
    model = opened(name, "sdpa")
    check(model, plain(name), padded(name, model))


@pytest.mark.full
@pytest.mark.parametrize("name", [*NOWHERE, "qwen3_5", "lfm2_vl"])
def test_layers_without_attention_are_refused_by_name(name: str) -> None:
    model = opened(name, "sdpa")
    batch = model.batch(built(name).inputs)
    layer = next(i for i in range(model.n_layers) if i not in attending(model))
    with pytest.raises(Unsupported, match=f"attention weights: .*layer {layer}"):
        model.run(batch, capture="attention_weights", layers=[layer])
    if name in NOWHERE:
        with pytest.raises(Unsupported, match="attention weights"):
            model.run(batch, capture="attention_weights")


HOW: dict[str, dict[str, Any]] = {
    "renormalised": {},
    "zeroed": {"renormalise": False},
    "collapsed": {"renormalise": False, "collapse": True},
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("attn", ["sdpa", pytest.param("eager", marks=pytest.mark.full)])
def test_weights_are_those_in_force(twin: Any, attn: str, how: str) -> None:
    model, copied = twin("llama", attn).model, eager_copy(twin("llama", attn).plain)
    batch, layers = encode(model, "ragged"), (1, 2)
    blocked = pairs(TEXT, VISUAL, batch)
    first = blocked.any(1).int().argmax(1) if how == "collapsed" else None
    mixers = mixers_of(copied, copied.model.language_model.layers)
    edited = {mixers[layer]: blocked for layer in layers}
    settings = {"renormalise": how == "renormalised", "collapse_to": first}
    with knocked_out(edited, **settings), weights_of(dict(enumerate(mixers))) as expected:
        copied(**batch.inputs)
    plan = Plan(BlockAttention(queries="text", keys="visual", layers=list(layers), **HOW[how]))
    asked = {"capture": "attention_weights", "queries": "all"}
    for run in (model.run(batch, plan, **asked), model.run_many(batch, [None, plan], **asked)[1]):
        for layer, weights in expected.items():
            mine = weights[run.query_sample, :, run.query_position]
            assert float((run.attention_weights[layer] - mine).abs().max()) < EQUAL
    clean = model.run(batch, **asked).attention_weights[1]
    assert float((clean - run.attention_weights[1]).abs().max()) > MOVED


def test_chosen_queries_and_keys_are_rows_and_columns_of_all(twin: Any, tmp_path: Path) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    every = model.run(batch, capture="attention_weights", queries="all")
    assert every.key_position is not None
    assert every.key_position.shape == (len(batch), batch.length)
    padding = every.key_position < 0
    assert torch.equal(padding, batch.inputs["attention_mask"] == 0)
    whole = torch.zeros(len(batch), batch.length, 4, batch.length)
    whole[every.query_sample, every.query_position] = every.attention_weights[2]
    assert not whole.transpose(1, 3)[padding].any()

    last = model.run(batch, capture="attention_weights", layers=[2])
    assert last.attention_weights[2].shape == (len(batch), 4, batch.length)
    torch.testing.assert_close(last.attention_weights[2], whole[:, -1], atol=EQUAL, rtol=EQUAL)
    chosen = model.run(
        batch,
        capture="attention_weights",
        layers=[2],
        queries="text & ~bos",
        keys="visual",
    )
    rows = zip(chosen.query_sample, chosen.query_position, chosen.attention_weights[2], strict=True)
    for sample, position, weights in rows:
        keys = chosen.key_position[sample]
        there = keys >= 0
        mine = batch.visual.position[batch.visual.sample == int(sample)]
        assert keys[there].tolist() == mine.tolist()
        every_key = whole[sample, position][:, keys[there]]
        torch.testing.assert_close(weights[:, there], every_key, atol=EQUAL, rtol=EQUAL)
        assert not weights[:, ~there].any()
    assert len(chosen.query_sample) == int(TEXT.prompt(*_tensors(batch)).sum()) - len(batch)

    # Padding is no query and no key, whatever a mask says.
    everything = torch.ones(len(batch), batch.length, dtype=torch.bool)
    masked = model.run(
        batch, capture="attention_weights", layers=[2], queries=everything, keys=everything
    )
    assert torch.equal(masked.query_position, every.query_position)
    assert int((masked.key_position >= 0).sum()) == int((~padding).sum())

    # A sample with fewer keys than others has zeros behind them, also where nothing is padded.
    few = batch.inputs["attention_mask"].bool()
    assert few[1].all()
    few[1, 3:] = False
    fewer = model.run(batch, capture="attention_weights", layers=[2], keys=few)
    assert fewer.key_position[1].tolist() == [0, 1, 2] + [-1] * (fewer.key_position.shape[1] - 3)
    torch.testing.assert_close(
        fewer.attention_weights[2][1, :, :3], whole[1, -1, :, :3], atol=EQUAL, rtol=EQUAL
    )
    assert not fewer.attention_weights[2][1, :, 3:].any()

    chosen.save(tmp_path / "run")
    again = Run.load(tmp_path / "run")
    assert torch.equal(again.attention_weights[2], chosen.attention_weights[2])
    for name in ("query_sample", "query_position", "key_position"):
        assert torch.equal(getattr(again, name), getattr(chosen, name))
    model.run(batch).save(tmp_path / "bare")
    assert Run.load(tmp_path / "bare").key_position is None


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.inputs["input_ids"], batch.inputs["attention_mask"]


def test_no_query_or_no_key_is_refused(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "middle")
    nobody = torch.zeros(1, batch.length, dtype=torch.bool)
    for which in ("queries", "keys"):
        with pytest.raises(InputError, match="no token"):
            model.run(batch, capture="attention_weights", **{which: nobody})
        with pytest.raises(InputError, match=f"{which}: a mask must be boolean"):
            model.run(batch, capture="attention_weights", **{which: nobody[:, 1:]})
        with pytest.raises(InputError, match="visal"):
            model.run(batch, capture="attention_weights", **{which: "visal"})


def test_sinks_take_their_share_and_are_no_key() -> None:
    """Beside the keys, so that rows sum to less than 1; edited weights are computed with them."""
    made = tiny.build("gpt_oss", "eager")
    copied = copy.deepcopy(made.model)
    model = VisualLM(made.model, made.processor)
    batch = encode(model, "ragged")
    check(model, copied, batch)
    shares = model.run(batch, capture="attention_weights").attention_weights[1].sum(-1)
    assert 0.1 < float(shares.min()) <= float(shares.max()) < 1 - MOVED_A_LITTLE
    blocked = pairs(TEXT, VISUAL, batch)
    mixers = mixers_of(copied, copied.model.language_model.layers)
    causal = torch.ones(blocked.shape[-2:], dtype=torch.bool).tril()
    zeroing = {mixers[layer]: scaled(blocked & causal, 0.0) for layer in (0, 1)}
    with softmax_changed(zeroing), weights_of(dict(enumerate(mixers))) as weights:
        expected = copied(**batch.inputs, use_cache=False).logits
    plan = Plan(BlockAttention(queries="text", keys="visual", layers="0-1", renormalise=False))
    run = model.run(batch, plan, capture="attention_weights", queries="all", logits="all")
    real = batch.inputs["attention_mask"].bool()
    assert float((run.logits - expected)[real].abs().max()) < EQUAL
    mine = weights[1][run.query_sample, :, run.query_position]
    assert float((run.attention_weights[1] - mine).abs().max()) < EQUAL


def _as_flash(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> Any:
    """What a flash kernel computes, which takes no mask over pairs."""
    length = query.shape[2]
    dense = torch.full((length, length), torch.finfo(query.dtype).min).triu(1)[None, None]
    if mask is not None:
        dense = dense.masked_fill(mask[:, None, None, :] == 0, torch.finfo(query.dtype).min)
    return eager_attention_forward(module, query, key, value, dense, **options)[0], None


def _as_flex(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> Any:
    """What flex attention computes, whose mask is a function of sample, head, query and key."""
    sizes = (len(query), 1, query.shape[2], key.shape[2])
    seen = create_mask(mask.mask_mod, *sizes, device="cpu")
    dense = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(query.dtype).min)
    return eager_attention_forward(module, query, key, value, dense, **options)[0], None


def _no_softmax(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> Any:
    """Scores squared: weights that sum to 1, and are no softmax."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    scores = (query @ key.transpose(-1, -2)).square().tril() + 1e-9
    return (scores / scores.sum(-1, keepdim=True) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("as_flash", _as_flash)
AttentionMaskInterface.register("as_flash", flash_attention_mask)
AttentionInterface.register("as_flex", _as_flex)
AttentionMaskInterface.register("as_flex", flex_attention_mask)
AttentionInterface.register("no_softmax", _no_softmax)
AttentionMaskInterface.register("no_softmax", eager_mask)


def switched(attn: str) -> tuple[VisualLM, Any]:
    made = tiny.build("llama", "sdpa")
    copied = copy.deepcopy(made.model)
    copied.set_attn_implementation("eager")
    made.model.set_attn_implementation({"text_config": attn})
    return VisualLM(made.model, made.processor), copied


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of how masks are compiled
@pytest.mark.parametrize("kernel", ["as_flash", pytest.param("as_flex", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", ["middle", "ragged"])
def test_a_kernel_that_takes_no_mask_over_pairs_has_the_same_weights(
    name: str, kernel: str
) -> None:
    model, copied = switched(kernel)
    check(model, copied, encode(model, name))


def test_a_kernel_that_is_no_softmax_is_refused_and_never_believed() -> None:
    model, _ = switched("no_softmax")
    with pytest.raises(InputError, match="layer 0 could not be computed again"):
        model.run(encode(model, "middle"), capture="attention_weights")
