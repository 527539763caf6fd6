"""Rows taken out before any layer: layers below as ever, those above as if they had never been."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import eager_copy, opened, padded, plain
from builders.generations import decoded, generated
from builders.prompts import called_dead, encode, marked, singles
from embedlens import (
    Batch,
    BlockAttention,
    InputError,
    Plan,
    PruneTokens,
    Unsupported,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.interventions.engines.payload.drop_between_layers import drop_between_layers
from embedlens.interventions.program.steps import Drop, Hide, Zero
from embedlens.lens.runs.plan_protocol import Pass
from families.family import FAMILIES, noise, random_model
from families.zoo import built
from oracles.dropped_tokens import ByHand
from oracles.knockouts import knocked_out, longer
from tolerances import ACCUMULATED, EQUAL, MOVED

N = tiny.LAYERS
# Families whose head and final norm the oracle finds.
BY_HAND = tuple(
    (
        "llava llava_next qwen2_vl qwen2_5_vl internvl paligemma idefics3 smolvlm mistral3 glm4v "
        "video_llama_3 got_ocr2"
    ).split()
)
PADDED = ("llava", "qwen2_5_vl", "internvl", "paligemma", "idefics3", "mistral3", "glm4v")
GENERATING = ("llava", "qwen2_5_vl", "internvl", "paligemma", "mistral3", "glm4v")
# And others that call their layers in ways of their own; deepstack up to some layer, among them.
OTHERS = tuple(
    (
        "qwen3_vl granite4_vision ernie4_5_vl_moe chameleon molmo2 blip-2 aria phi4_multimodal "
        "hunyuan_vl glm4v_moe"
    ).split()
)


# Families whose tokens can be taken out in front of the decoder too.
BEFORE_IT = tuple(
    (
        "llava llava_next qwen2_vl qwen2_5_vl qwen3_vl internvl idefics3 smolvlm mistral3 "
        "video_llama_3 got_ocr2 ernie4_5_vl_moe"
    ).split()
)


def leaves(layer: int, method: str = "remove", tokens: str = "dead") -> Plan:
    return Plan(WithdrawTokens(tokens=tokens, layer=layer, method=method))


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, in units of the logits' spread where that is more than 1."""
    shown = other > -1e30  # some models forbid some words
    return float((one - other).abs().max()) / max(1.0, float(other[shown].std()))


def settled(name: str) -> int:
    """First layer behind the last one that visual features are added before; 1 without any."""
    return max([1, *opened(name, "sdpa").anatomy.injections])


# ---------------------------------------------------------------- against layers called by hand


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", BY_HAND)
def test_families_equal_layers_called_by_hand_on_shortened_states(name: str, attn: str) -> None:
    model, copied = opened(name, attn), plain(name)
    batch, gone = marked(model.batch(built(name).inputs))
    hand = ByHand(copied, copied.get_submodule(model.anatomy.decoder), batch.inputs)
    for layer in (1, model.n_layers - 1):
        expected = hand.logits(hand.without(gone[0], layer)[0])[:, -1]
        found = model.run(batch, leaves(layer)).logits
        assert gap(found, expected) < EQUAL
        assert gap(found, hand.clean[:, -1]) > MOVED


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PADDED)
def test_rows_of_padded_batches_equal_their_prompts_alone(name: str, attn: str) -> None:
    model, copied, family = opened(name, attn), plain(name), built(name)
    batch, gone = marked(padded(name, model))
    assert len(set(gone.sum(1).tolist())) == len(batch), "the rows should lose different numbers"
    found = model.run(batch, leaves(1)).logits
    prompts = (family.prompt, f"{family.prompt} red star ?")
    for row, prompt in enumerate(prompts):
        single = model.encode([noise(family.size, row + 1)], [prompt])
        hand = ByHand(copied, copied.get_submodule(model.anatomy.decoder), single.inputs)
        expected = hand.logits(hand.without(gone[row, -single.length :], 1)[0])[0, -1]
        assert gap(found[row], expected) < EQUAL


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["llava", "qwen2_5_vl", "internvl", "paligemma", "mistral3", "glm4v"]
)
def test_generations_equal_layers_called_by_hand_without_a_cache(name: str, attn: str) -> None:
    model, copied, count = opened(name, attn), plain(name), 4
    batch, gone = marked(model.batch(built(name).inputs))
    for layer in (1, model.n_layers - 1):
        ids, logits = generated(model, leaves(layer), batch, count)
        inputs = longer(name, batch.inputs, ids)
        hand = ByHand(copied, copied.get_submodule(model.anatomy.decoder), inputs)
        missing = torch.cat([gone[0], torch.zeros(count, dtype=torch.bool)])
        expected = hand.logits(hand.without(missing, layer)[0])
        for step, found in enumerate(logits):
            assert gap(found, expected[:, step - count - 1]) < EQUAL, step
        assert gap(hand.clean[:, -1], expected[:, -1]) > MOVED


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_ragged_generations_equal_layers_called_by_hand(twin: Any, attn: str) -> None:
    model, copied = twin("llama", attn).model, eager_copy(twin("llama", attn).plain)
    batch, gone = marked(encode(model, "ragged"))
    for layer in range(1, N):
        ids, logits = generated(model, leaves(layer), batch, 4)
        for row, single in enumerate(singles(model)):
            inputs = longer("llava", single.inputs, ids[row : row + 1])
            hand = ByHand(copied, copied.model.language_model, inputs)
            missing = torch.cat([gone[row, -single.length :], torch.zeros(4, dtype=torch.bool)])
            expected = hand.logits(hand.without(missing, layer)[0])[0]
            for step, found in enumerate(logits):
                assert gap(found[row], expected[step - 5]) < EQUAL, (layer, row, step)


# ---------------------------------------------------------------- against masking


def assert_removed_as_masked(model: VisualLM, batch: Batch, layer: int) -> None:
    runs = [model.run(batch, leaves(layer, m)).logits for m in ("remove", "mask")]
    assert gap(*runs) < EQUAL
    removed, masked = (generated(model, leaves(layer, m), batch, 4) for m in ("remove", "mask"))
    assert torch.equal(removed[0], masked[0])
    assert max(map(gap, removed[1], masked[1])) < EQUAL


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*BY_HAND, *OTHERS])
def test_removal_equals_masking_at_every_layer(name: str, attn: str) -> None:
    model = opened(name, attn)
    batch, _ = marked(model.batch(built(name).inputs))
    clean = model.run(batch).logits
    for layer in [*[0] * (name in BEFORE_IT), *range(settled(name), model.n_layers)]:
        assert_removed_as_masked(model, batch, layer)
        assert gap(model.run(batch, leaves(layer)).logits, clean) > MOVED


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [*PADDED, "qwen3_vl", "chameleon", "molmo2", "blip-2"])
def test_removal_equals_masking_in_padded_batches(name: str, attn: str) -> None:
    model = opened(name, attn)
    batch, gone = marked(padded(name, model))
    assert len(set(gone.sum(1).tolist())) == len(batch), "the rows should lose different numbers"
    before = name in ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "mistral3", "blip-2")
    for layer in [*[0] * before, settled(name)]:
        assert_removed_as_masked(model, batch, layer)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_samples_without_padding_that_lose_different_numbers_get_some(twin: Any, attn: str) -> None:
    """Under sdpa the layers received no mask, and need one to hide it."""
    model = twin("llama", attn).model
    images = [[tiny.image(0)], [tiny.image(1)]]
    batch, gone = marked(model.encode(images, [tiny.PROMPTS["middle"]] * 2))
    assert batch.inputs["attention_mask"].all()
    assert len(set(gone.sum(1).tolist())) == 2
    for layer in range(N):
        assert_removed_as_masked(model, batch, layer)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_removal_equals_masking_in_scores(twin: Any, attn: str) -> None:
    model = twin("llama", attn).model
    batch, _ = marked(encode(model, "ragged"))
    answers = ["red star", "a b c d", "blue", "x"]
    clean = model.score(batch, answers).logprob
    for layer in range(N):
        removed, masked = (
            model.score(batch, answers, leaves(layer, m)).logprob for m in ("remove", "mask")
        )
        assert float((removed - masked).abs().max()) < ACCUMULATED
        assert float((removed - clean).abs().max()) > MOVED


def test_scores_of_a_prompt_seen_in_both_directions_are_the_same() -> None:
    model = opened("paligemma", "sdpa")
    batch, _ = marked(padded("paligemma", model))
    answers = ["red star", "a"]
    removed, masked = (
        model.score(batch, answers, leaves(1, m)).logprob for m in ("remove", "mask")
    )
    assert float((removed - masked).abs().max()) < ACCUMULATED
    assert float((removed - model.score(batch, answers).logprob).abs().max()) > MOVED


def test_pruning_at_a_layer_is_withdrawing_there(twin: Any) -> None:
    model = twin().model
    batch, _ = marked(encode(model, "ragged"))
    for layer in range(N):
        pruned = Plan(PruneTokens(tokens="dead", layer=layer, method="remove"))
        found = model.run(batch, pruned).logits
        assert torch.equal(found, model.run(batch, leaves(layer)).logits)
        tokens = "visual & ~last"
        whole = (
            PruneTokens(layer=layer, tokens=tokens),
            WithdrawTokens(layer=layer, tokens=tokens),
        )
        assert torch.equal(*(model.run(batch, Plan(operation)).logits for operation in whole))


# ---------------------------------------------------------------- the sequence and its caches


def test_layers_below_are_as_ever_and_those_above_are_shorter(twin: Any) -> None:
    model, layer = twin().model, 2
    batch, gone = marked(encode(model, "middle"))
    clean = model.run(batch, capture="residual", tokens="all").residual
    with model.trace(batch, leaves(layer)):
        before = model.layers[layer - 1].output.save()
        first = model.layers[layer].input.save()
        last = model.layers[N - 1].output.save()
    assert torch.equal(before[0], clean[layer])
    assert torch.equal(first[0], clean[layer][~gone[0]])
    assert last.shape[1] == first.shape[1] == batch.length - int(gone.sum())


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("rows", ["one", "padded"])
def test_caches_hold_less_from_the_layer_on(name: str, attn: str, cache: str, rows: str) -> None:
    model = opened(name, attn)
    batch, gone = marked(model.batch(built(name).inputs) if rows == "one" else padded(name, model))
    asked = {} if cache == "dynamic" else {"cache_implementation": cache}
    full = batch.length + 3
    left = int((batch.inputs["attention_mask"].bool() & ~gone).sum(1).max()) + 3
    assert left < full
    masked = decoded(model, leaves(1, "mask"), batch)
    for layer in range(model.n_layers):
        out = decoded(model, leaves(layer), batch, **asked)
        held = [int(out.past_key_values.get_seq_length(i)) for i in range(model.n_layers)]
        assert held == [full] * layer + [left] * (model.n_layers - layer)
        if cache == "dynamic":
            stored = [kept.keys.shape[-2] for kept in out.past_key_values.layers]
            assert stored == held
        expected = masked if layer == 1 else decoded(model, leaves(layer, "mask"), batch)
        assert torch.equal(out.sequences, expected.sequences)
        assert max(map(gap, out.logits, expected.logits)) < EQUAL


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_generations_without_a_cache_and_in_beams_are_the_same(twin: Any, attn: str) -> None:
    model = twin("llama", attn).model
    batch, gone = marked(encode(model, "ragged"))
    for layer in (0, 2):
        expected = decoded(model, leaves(layer, "mask"), batch)
        found = decoded(model, leaves(layer), batch, use_cache=False)
        assert torch.equal(found.sequences, expected.sequences)
        assert max(map(gap, found.logits, expected.logits)) < EQUAL
        beams = decoded(model, leaves(layer), batch, num_beams=3).sequences
        for row, single in enumerate(singles(model)):
            # Which of its tokens are dead is drawn for the whole batch.
            part = called_dead(single, gone[row])
            alone = decoded(model, leaves(layer, "mask"), part, num_beams=3).sequences
            assert torch.equal(beams[row, -4:], alone[0, -4:])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_removing_nothing_changes_no_bit(twin: Any, attn: str) -> None:
    model = twin("llama", attn).model
    batch = encode(model, "ragged")
    nothing = Plan(
        WithdrawTokens(tokens="visual & text", layer=2, method="remove", allow_empty=True)
    )
    assert torch.equal(model.run(batch, nothing).logits, model.run(batch).logits)


# ---------------------------------------------------------------- which of the two it is


def kinds(plan: Plan, model: VisualLM, batch: Batch, during: Pass | None = None) -> set[type]:
    return {type(step) for step in plan.compile(model, batch, during).steps}


@pytest.mark.parametrize("layer", [0, 2])
def test_auto_removes_unless_the_whole_sequence_is_needed(twin: Any, layer: int) -> None:
    model = twin().model
    batch, _ = marked(encode(model, "ragged"))
    auto, operation = leaves(layer, "auto"), leaves(layer, "auto").operations[0]
    out = {Drop}
    for during in (Pass("forward"), Pass("generation"), Pass("scoring", 2)):
        assert kinds(auto, model, batch, during) == out
        assert operation.way(model, during) == ("remove", "")
    for during in (Pass("forward", positions=True), Pass("forward", traced=True)):
        assert kinds(auto, model, batch, during) == {Hide}
        way = operation.way(model, during)
        assert way.method == "mask"
        assert "positions" in way.reason
    two = auto + Plan(ZeroFFN(layers=1))
    assert kinds(two, model, batch) == {Hide, Zero}
    assert "other operations" in operation.way(model, alone=False).reason
    assert kinds(leaves(layer, "mask"), model, batch) == {Hide}
    assert leaves(layer, "mask").operations[0].way(model) == ("mask", "")


@pytest.mark.parametrize("layer", [0, 2])
def test_auto_gives_what_either_of_the_two_gives(twin: Any, layer: int) -> None:
    model = twin().model
    batch, _ = marked(encode(model, "ragged"))
    auto, mask, remove = (leaves(layer, method) for method in ("auto", "mask", "remove"))
    assert torch.equal(model.run(batch, auto).logits, model.run(batch, remove).logits)
    written = [model.generate(batch, plan, max_new_tokens=3) for plan in (auto, mask, remove)]
    assert written[0] == written[1] == written[2]
    everywhere = [model.run(batch, plan, logits="all").logits for plan in (auto, mask)]
    assert torch.equal(*everywhere)
    captured = [
        model.run(batch, plan, capture="residual", tokens="all").residual for plan in (auto, mask)
    ]
    assert all(torch.equal(captured[0][at], captured[1][at]) for at in captured[0])
    with model.trace(batch, auto):
        last = model.layers[N - 1].output.save()
    assert last.shape[1] == batch.length
    together = [model.run(batch, plan + Plan(ZeroFFN(layers=1))).logits for plan in (auto, mask)]
    assert torch.equal(*together)


def test_the_way_tokens_leave_is_the_default_of_both_operations(twin: Any) -> None:
    model = twin().model
    batch, _ = marked(encode(model, "middle"))
    assert PruneTokens().method == WithdrawTokens(layer=1).method == "auto"
    assert kinds(Plan(PruneTokens(tokens="dead")), model, batch) == {Drop}
    assert kinds(Plan(WithdrawTokens(tokens="dead", layer=1)), model, batch) == {Drop}


@pytest.mark.parametrize("method", ["auto", "mask", "remove"])
def test_the_method_is_part_of_the_plan(method: str) -> None:
    plan = Plan(
        PruneTokens(layer=2, method=method), WithdrawTokens(tokens="dead", layer=1, method=method)
    )
    for again in (Plan.from_yaml(plan.to_yaml()), Plan.from_json(plan.to_json())):
        assert again == plan
    assert (plan == Plan(PruneTokens(layer=2), WithdrawTokens(tokens="dead", layer=1))) == (
        method == "auto"
    )


def test_counting_anew_is_never_left_to_masking(twin: Any) -> None:
    model = twin().model
    batch, _ = marked(encode(model, "ragged"))
    auto, remove = (
        Plan(PruneTokens(tokens="dead", positions="renumber", method=method))
        for method in ("auto", "remove")
    )
    assert torch.equal(model.run(batch, auto).logits, model.run(batch, remove).logits)
    with model.trace(batch, auto):
        last = model.layers[N - 1].output.save()
    assert last.shape[1] < batch.length
    with pytest.raises(InputError, match="shorter than the prompt"):
        model.run(batch, auto, logits="all")


# Where what a token sees is counted in rows, whatever the layer.
COUNTED = ("gemma3", "exaone4_5", "llama4", "gemma4")


@pytest.mark.parametrize("name", COUNTED)
def test_where_rows_are_counted_auto_masks_and_removal_is_refused(name: str) -> None:
    model = opened(name, "sdpa")
    batch, _ = marked(model.batch(built(name).inputs))
    for layer in (0, model.n_layers - 1):
        with pytest.raises(Unsupported, match="method='mask'"):
            model.run(batch, leaves(layer))
        masked = model.run(batch, leaves(layer, "mask")).logits
        assert torch.equal(model.run(batch, leaves(layer, "auto")).logits, masked)
        way = leaves(layer, "auto").operations[0].way(model)
        assert way.method == "mask"
        assert "this model has" in way.reason


@pytest.mark.parametrize("name", ["qwen3_vl", "granite4_vision"])
def test_features_added_behind_the_layer_keep_the_rows(name: str) -> None:
    model = opened(name, "sdpa")
    batch, _ = marked(model.batch(built(name).inputs))
    last = max(model.anatomy.injections)
    with pytest.raises(Unsupported, match=f"again before layer {last}"):
        model.run(batch, leaves(last - 1))
    masked = model.run(batch, leaves(last - 1, "mask")).logits
    assert torch.equal(model.run(batch, leaves(last - 1, "auto")).logits, masked)
    assert leaves(last, "auto").operations[0].way(model).method == "remove"


@pytest.mark.parametrize("name", ["chameleon", "phi4_multimodal"])
def test_a_decoder_that_embeds_its_input_is_cut_between_layers_only(name: str) -> None:
    model = opened(name, "sdpa")
    auto = PruneTokens(tokens="dead").way(model)
    assert auto.method == "mask"
    assert "embeds its input itself" in auto.reason
    assert PruneTokens(tokens="dead", layer=1).way(model).method == "remove"


def test_layers_that_share_earlier_keys_keep_the_rows() -> None:
    """Every family that does so counts rows too, so that this is asked of a changed anatomy."""
    model = opened("llava", "sdpa")
    parts = ("n_layers", "hf", "nn", "attn_implementation", "tokenizer", "run")
    sharing = SimpleNamespace(
        anatomy=replace(model.anatomy, last_token_layers=(2,)),
        **{name: getattr(model, name) for name in parts},
    )
    assert leaves(1, "auto").operations[0].way(model).method == "remove"
    way = leaves(1, "auto").operations[0].way(sharing)
    assert way.method == "mask"
    assert "share keys and values" in way.reason


def test_masks_that_are_not_understood_are_not_cut() -> None:
    """Other implementations of attention take masks of other forms."""
    model = opened("llava", "eager")
    mixer = model.hf.get_submodule(model.anatomy.mixer[2])
    held = mixer.config
    mixer.config = copy.copy(held)
    mixer.config._attn_implementation_internal = "flex_attention"
    try:
        with pytest.raises(Unsupported, match="flex_attention"):
            leaves(1).operations[0].way(model)
    finally:
        mixer.config = held
    assert leaves(1).operations[0].way(model).method == "remove"


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: WithdrawTokens(tokens="text", layer=1, method="remove"), "last token of sample 0"),
        (lambda: WithdrawTokens(tokens="visual & text", layer=1, method="remove"), "do nothing"),
        (lambda: WithdrawTokens(layer=N, method="remove"), f"no layer {N}"),
        (lambda: WithdrawTokens(layer=1, method="hide"), "method"),
    ],
)
def test_what_cannot_be_done_is_refused(twin: Any, operation: Any, message: str) -> None:
    model = twin().model
    with pytest.raises(InputError, match=message):
        model.run(encode(model, "middle"), Plan(operation()))


def test_what_a_shorter_sequence_cannot_give_is_refused(twin: Any) -> None:
    model = twin().model
    batch, _ = marked(encode(model, "middle"))
    for asked in ({"capture": "residual"}, {"logits": "all"}):
        with pytest.raises(InputError, match=r"shorter than the prompt.*method='mask'"):
            model.run(batch, leaves(2), **asked)
    with pytest.raises(InputError, match=r"other operations.*method='mask'"):
        model.run(batch, leaves(2) + Plan(ZeroFFN(layers=1)))


# ---------------------------------------------------------------- arguments, one by one


class Site:
    """One decoder layer on its own, for whatever path is asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.inputs = (args, kwargs)

    def get(self, _: str) -> Site:
        return self


# Two samples of five tokens: the first loses tokens 0 and 2, one of which stays as padding that
# could see nothing but itself; the second loses token 3.
TAKE = torch.tensor([[0, 1, 3, 4], [0, 1, 2, 4]])
KEPT = torch.tensor([[False, True, True, True], [True] * 4])
STATES = torch.arange(20.0).reshape(2, 5, 2)
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]


def cut_once(site: Site, **layer: Any) -> dict[str, Any]:
    step = {
        "by": "a test",
        "length": 5,
        "behind": 0,
        "take": TAKE,
        "kept": KEPT,
        "layers": [
            {"path": "x", "index": 0, "boolean": True, "causal": True, "window": 0, **layer}
        ],
    }
    drop_between_layers(site, {}, step, 0)
    args, given = site.inputs
    return {"states": args[0] if args else given["hidden_states"], **given}


def test_every_known_argument_is_cut_alike() -> None:
    table, places = torch.arange(10.0).reshape(1, 5, 2), torch.arange(30).reshape(3, 2, 5)
    rotary, types = torch.rand(3, 2, 5, 4), torch.arange(10).reshape(2, 5)
    found = cut_once(
        Site(
            hidden_states=STATES,
            attention_mask=CAUSAL,
            position_embeddings=(table, table + 1),
            position_ids=places,
            rotary=[rotary[0]],
            types=types,
            use_cache=False,
            cache=None,
        )
    )
    for row, (take, kept) in enumerate(zip(TAKE, KEPT, strict=True)):
        assert torch.equal(found["states"][row], STATES[row, take])
        for number in range(2):
            assert torch.equal(found["position_embeddings"][number][row], table[0, take] + number)
        assert torch.equal(found["position_ids"][:, row], places[:, row, take])
        assert torch.equal(found["rotary"][0][row], rotary[0, row, take])
        assert torch.equal(found["types"][row], types[row, take])
        mask = found["attention_mask"][row, 0]
        assert torch.equal(mask[kept][:, kept], CAUSAL[0, 0][take[kept]][:, take[kept]])
        assert not mask[kept][:, ~kept].any()
        assert mask.any(-1).all()
    assert found["use_cache"] is False
    spread = {"hidden_states": STATES, "attention_mask": CAUSAL}
    spread["position_embeddings"] = (rotary, rotary)
    cosine, _ = cut_once(Site(**spread))["position_embeddings"]
    assert torch.equal(cosine[:, 1], rotary[:, 1, TAKE[1]])


def test_a_mask_is_made_where_the_kernel_made_its_own() -> None:
    made = cut_once(Site(STATES, attention_mask=None))["attention_mask"]
    given = cut_once(Site(STATES, attention_mask=CAUSAL))["attention_mask"]
    assert torch.equal(made, given)
    everything = cut_once(Site(STATES, attention_mask=None), causal=False)["attention_mask"]
    assert everything[1].all()
    assert not everything[0, 0, 1:, 0].any()


def test_added_masks_stay_added() -> None:
    lowest = torch.finfo(torch.float32).min
    added = torch.zeros(CAUSAL.shape).masked_fill(~CAUSAL, lowest)
    boolean = cut_once(Site(STATES, attention_mask=CAUSAL))["attention_mask"]
    found = cut_once(Site(STATES, attention_mask=added))["attention_mask"]
    assert torch.equal(found == 0, boolean)
    assert torch.equal(found == lowest, ~boolean)


class Cache:
    """A cache with room for a number of tokens."""

    def __init__(self, room: int) -> None:
        self.room = room

    def get_mask_sizes(self, _: int, __: int) -> tuple[int, int]:
        return self.room, 0


def test_caches_of_fixed_size_get_empty_columns() -> None:
    wide = torch.nn.functional.pad(CAUSAL, (0, 3))
    mask = cut_once(Site(STATES, attention_mask=wide, past_key_values=Cache(8)))["attention_mask"]
    assert mask.shape == (2, 1, 4, 8)
    assert not mask[..., 4:].any()


@pytest.mark.parametrize(
    ("arguments", "layer", "message"),
    [
        ({"attention_mask": CAUSAL[0]}, {}, "mask"),
        ({"attention_mask": CAUSAL[..., :4]}, {}, "mask"),
        ({"attention_mask": CAUSAL.long()}, {}, "mask"),
        ({"attention_mask": {"full": CAUSAL}}, {}, "mask"),
        ({"attention_mask": None}, {"boolean": False}, "received no mask"),
        ({"attention_mask": None}, {"window": 3}, "received no mask"),
        ({}, {}, "received no mask"),
        ({"attention_mask": CAUSAL, "past_key_values": Cache(3)}, {}, "3 tokens at most"),
        ({"attention_mask": CAUSAL, "cache_position": torch.arange(5)}, {}, "cache_position"),
        ({"attention_mask": CAUSAL, "seams": torch.arange(3)}, {}, "seams"),
        ({"attention_mask": CAUSAL, "bias": torch.zeros(2, 1, 5, 5)}, {}, "bias"),
        ({"attention_mask": CAUSAL, "memory": torch.zeros(2, 7, 5)}, {}, "memory"),
        ({"attention_mask": CAUSAL, "shared": {}}, {}, "shared"),
        ({"attention_mask": CAUSAL, "position_embeddings": object()}, {}, "position_embeddings"),
        ({"attention_mask": CAUSAL, "position_ids": torch.zeros(2, 5, 5)}, {}, "position_ids"),
    ],
)
def test_an_argument_that_is_not_understood_is_refused(
    arguments: dict[str, Any], layer: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^REFUSED: a test: .*{message}.*method='mask'"):
        cut_once(Site(STATES, **arguments), **layer)


@pytest.mark.parametrize("states", [STATES[:, :4], STATES[:1], STATES[None], STATES[:, :1]])
def test_another_sequence_than_the_prompt_is_refused(states: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^REFUSED: a test: .*tokens were expected"):
        cut_once(Site(states, attention_mask=CAUSAL))


def test_arguments_without_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^REFUSED: a test: .*without naming"):
        cut_once(Site(STATES, CAUSAL))
    cut_once(Site(STATES, None, attention_mask=CAUSAL))


# ---------------------------------------------------------------- layers that mix no tokens


@pytest.fixture(scope="module")
def single_sublayers() -> Any:
    """A decoder whose layers are attention or feed-forward in turn, opened and plain."""
    family = FAMILIES["nemotron_h_omni"]()
    config = copy.deepcopy(family.model.config)
    config.text_config.layers_block_type = ["full_attention", "mlp", "full_attention", "moe"]
    made = random_model(lambda: type(family.model)(config))
    made.set_attn_implementation({"text_config": "eager"})
    copied = copy.deepcopy(made)
    model = VisualLM(made)
    return model, copied, marked(model.batch(family.inputs))


def test_layers_without_attention_are_passed_over(single_sublayers: Any) -> None:
    """Neither a prompt's knockout nor pruning stumbles over a layer that has no keys."""
    model, copied, (batch, gone) = single_sublayers
    assert model.anatomy.mixer_kinds == ("attention", "none", "attention", "none")
    clean = model.run(batch).logits
    mixers = [copied.get_submodule(path) for path in model.anatomy.mixer if path is not None]
    seen = model.anatomy.visual_mask(batch.inputs)
    blocked = {
        "prune": (PruneTokens(tokens="dead", method="mask"), gone, ~gone),
        "block": (BlockAttention(queries="text", keys="visual"), seen, ~seen),
    }
    for operation, keys, queries in blocked.values():
        pairs = queries[:, :, None] & keys[:, None]
        with knocked_out(dict.fromkeys(mixers, pairs)):
            expected = copied(**batch.inputs).logits[:, -1]
        found = model.run(batch, Plan(operation)).logits
        assert gap(found, expected) < EQUAL
        assert gap(found, clean) > MOVED
    with pytest.raises(Unsupported, match="mixes no tokens"):
        model.run(batch, Plan(BlockAttention(queries="text", keys="visual", layers="0-1")))


def test_rows_are_taken_out_of_layers_without_attention(single_sublayers: Any) -> None:
    model, _, (batch, _) = single_sublayers
    for layer in range(model.n_layers):
        removed, masked = (model.run(batch, leaves(layer, m)).logits for m in ("remove", "mask"))
        assert gap(removed, masked) < EQUAL
        ids, logits = generated(model, leaves(layer), batch, 3)
        others, expected = generated(model, leaves(layer, "mask"), batch, 3)
        assert torch.equal(ids, others)
        assert max(map(gap, logits, expected)) < EQUAL
