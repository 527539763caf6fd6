"""Tokens that leave or come in late equal decoder layers called by hand on shortened states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import eager_copy, opened, padded, plain
from builders.generations import generated
from builders.prompts import called_dead, encode, marked, singles
from embedlens import (
    Batch,
    InjectTokens,
    InputError,
    Plan,
    PruneTokens,
    Unsupported,
    VisualLM,
    WithdrawTokens,
)
from families.family import noise
from families.zoo import built
from oracles.dropped_tokens import ByHand
from oracles.knockouts import longer
from tolerances import EQUAL, MOVED

N = tiny.LAYERS
FAMILIES = tuple(
    (
        "llava llava_next qwen2_5_vl qwen2_vl gemma3 internvl paligemma idefics3 mistral3 "
        "exaone4_5 smolvlm video_llama_3"
    ).split()
)
PADDED = ("llava", "qwen2_5_vl", "gemma3", "internvl", "paligemma", "idefics3", "mistral3")


def leaving(model: VisualLM, batch: Batch, plan: Plan) -> Tensor:
    """States behind the last layer, ``[sample, token, d]``."""
    end = model.n_layers
    run = model.run(batch, plan, capture="residual", layers=[end], tokens="all", logits=None)
    made = torch.full((len(batch), batch.length, run.residual[end].shape[1]), torch.nan)
    made[run.sample, run.position] = run.residual[end]
    return made


PLANS = {
    "prune-0": (PruneTokens(tokens="dead"), 0),
    "prune-2": (PruneTokens(tokens="dead", layer=2), 2),
    "prune-last": (PruneTokens(tokens="dead", layer=N - 1), N - 1),
    "withdraw-1": (WithdrawTokens(tokens="dead", layer=1), 1),
}


@pytest.mark.parametrize(("operation", "layer"), PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_pruning_equals_removal(twin: Any, attn: str, operation: Any, layer: int) -> None:
    """A padded batch whose rows lose different numbers of tokens, against each prompt alone."""
    model, copied = twin("llama", attn).model, eager_copy(twin("llama", attn).plain)
    batch, gone = marked(encode(model, "ragged"))
    found = leaving(model, batch, Plan(operation))
    logits = model.run(batch, Plan(operation)).logits
    for row, single in enumerate(singles(model)):
        # The image comes last in one prompt: what is pruned must not be the last token.
        hand = ByHand(copied, copied.model.language_model, single.inputs)
        expected, kept = hand.without(gone[row, -single.length :], layer)
        real = found[row, -single.length :][kept]
        assert float((real - expected[0]).abs().max()) < EQUAL
        read = hand.logits(expected)[0, -1]
        assert float((logits[row] - read).abs().max()) < EQUAL


@pytest.mark.parametrize("norm", ["raw", "rescaled", "matched"])
@pytest.mark.parametrize("layer", [0, 1, N - 1])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_injection_equals_layers_that_have_not_seen_the_tokens(
    twin: Any, attn: str, layer: int, norm: str
) -> None:
    model, copied = twin("llama", attn).model, eager_copy(twin("llama", attn).plain)
    prompts = [tiny.PROMPTS["middle"], tiny.PROMPTS["two"], tiny.PROMPTS["short"]]
    seeds = [[0], [1, 2], [3]]
    batch = model.encode([[tiny.image(seed) for seed in row] for row in seeds], prompts)
    found = leaving(model, batch, Plan(InjectTokens(layer=layer, norm=norm)))
    for row, prompt in enumerate(prompts):
        single = model.encode([[tiny.image(seed) for seed in seeds[row]]], [prompt])
        hand = ByHand(copied, copied.model.language_model, single.inputs)
        expected = hand.late(single.inputs["input_ids"][0] == tiny.IMAGE_ID, layer, norm)
        assert float((found[row, -single.length :] - expected[0]).abs().max()) < EQUAL


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_equal_layers_called_by_hand(name: str, attn: str) -> None:
    model, copied = opened(name, attn), plain(name)
    batch, gone = marked(model.batch(built(name).inputs))
    check(model, copied, batch, gone, [batch])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PADDED)
def test_padded_families_equal_layers_called_by_hand(name: str, attn: str) -> None:
    model, copied, family = opened(name, attn), plain(name), built(name)
    batch, gone = marked(padded(name, model))
    alone = [
        model.encode([noise(family.size, seed)], [prompt])
        for seed, prompt in ((1, family.prompt), (2, f"{family.prompt} red star ?"))
    ]
    check(model, copied, batch, gone, alone)


def check(
    model: VisualLM, copied: Any, batch: Batch, gone: Tensor, alone: list[Batch], first: int = 1
) -> None:
    decoder = copied.get_submodule(model.anatomy.decoder)
    clean = leaving(model, batch, Plan())
    pruned = {
        layer: leaving(model, batch, Plan(PruneTokens(tokens="dead", layer=layer)))
        for layer in (0, first)
    }
    late = leaving(model, batch, Plan(InjectTokens(layer=first)))
    for row, single in enumerate(alone):
        hand = ByHand(copied, decoder, single.inputs)
        missing = gone[row, -single.length :]
        for layer, found in pruned.items():
            expected, kept = hand.without(missing, layer)
            scale = max(1.0, float(expected.std()))
            mine = found[row, -single.length :][kept]
            assert float((mine - expected[0]).abs().max()) < EQUAL * scale
            before = clean[row, -single.length :][kept]
            assert float((mine - before).abs().max()) > MOVED
        expected = hand.late(model.anatomy.visual_mask(single.inputs)[0], first)
        mine = late[row, -single.length :]
        assert float((mine - expected[0]).abs().max()) < EQUAL * max(1.0, float(expected.std()))
        assert float((mine - clean[row, -single.length :]).abs().max()) > MOVED


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["llava", "qwen2_5_vl", "gemma3", "internvl", "paligemma", "mistral3", "exaone4_5"]
)
@pytest.mark.parametrize("what", ["prune", "withdraw", "inject"])
def test_generations_of_families_equal_layers_called_by_hand(
    name: str, attn: str, what: str
) -> None:
    model, copied, count = opened(name, attn), plain(name), 4
    batch, gone = marked(model.batch(built(name).inputs))
    operation = {
        "prune": PruneTokens(tokens="dead"),
        "withdraw": WithdrawTokens(layer=1),
        "inject": InjectTokens(layer=2),
    }[what]
    ids, logits = generated(model, Plan(operation), batch, count)
    inputs = longer(name, batch.inputs, ids)
    hand = ByHand(copied, copied.get_submodule(model.anatomy.decoder), inputs)
    seen = model.anatomy.visual_mask(inputs)[0]
    if what == "inject":
        expected = hand.logits(hand.late(seen, 2))
    else:
        missing = torch.cat([gone[0], torch.zeros(count, dtype=torch.bool)])
        states, _ = hand.without(*((missing, 0) if what == "prune" else (seen, 1)))
        expected = hand.logits(states)
    scale = max(1.0, float(hand.clean.std()))
    for step, found in enumerate(logits):
        read = expected[:, expected.shape[1] - count - 1 + step]
        assert float((found - read).abs().max()) < EQUAL * scale, step
    assert float((hand.clean[:, -1] - expected[:, -1]).abs().max()) > MOVED


def test_a_batch_generates_what_its_prompts_generate_alone(twin: Any) -> None:
    model = twin().model
    batch, gone = marked(encode(model, "ragged"))
    for operation in (
        PruneTokens(tokens="dead"),
        WithdrawTokens(tokens="dead", layer=2),
        InjectTokens(tokens="dead", layer=2, norm="matched"),
    ):
        ids, logits = generated(model, Plan(operation), batch, 3)
        for row, single in enumerate(singles(model)):
            part = called_dead(single, gone[row])
            ids_alone, logits_alone = generated(model, Plan(operation), part, 3)
            assert torch.equal(ids_alone[0], ids[row])
            for one, other in zip(logits_alone, logits, strict=True):
                assert float((one[0] - other[row]).abs().max()) < EQUAL


# ---------------------------------------------------------------- nothing, composition, refusals

NOTHING = {
    "inject-at-0": Plan(InjectTokens(layer=0)),
    "prune-none": Plan(PruneTokens(tokens="visual & text", allow_empty=True)),
    "withdraw-none": Plan(WithdrawTokens(tokens="visual & text", layer=1, allow_empty=True)),
    "inject-none": Plan(InjectTokens(tokens="visual & text", layer=1, allow_empty=True)),
}


@pytest.mark.parametrize("plan", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_doing_nothing_changes_no_bit(twin: Any, attn: str, plan: Plan) -> None:
    model = twin("llama", attn).model
    batch = encode(model, "ragged")
    clean = model.run(batch, logits="all").logits
    assert torch.equal(model.run(batch, plan, logits="all").logits, clean)
    written = model.generate(batch, max_new_tokens=3)
    assert model.generate(batch, plan, max_new_tokens=3) == written


def test_pruning_in_two_parts_is_pruning_at_once(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "middle")
    parts = [PruneTokens(tokens=f"box[{r}:{r + 2}, 0:4]") for r in (0, 2)]
    whole = model.run(batch, Plan(PruneTokens(method="mask"))).logits
    for order in (parts, parts[::-1]):
        assert torch.equal(model.run(batch, Plan(*order)).logits, whole)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_an_image_that_comes_first_can_be_pruned(twin: Any, attn: str) -> None:
    """Its first token sees nothing but itself, and keeps seeing that."""
    model, copied = twin("llama", attn).model, eager_copy(twin("llama", attn).plain)
    inputs = dict(encode(model, "start").inputs)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = inputs[name][:, 1:]
    batch = model.batch(inputs)
    gone = batch.inputs["input_ids"][0] == tiny.IMAGE_ID
    assert gone[0]
    expected, kept = ByHand(copied, copied.model.language_model, inputs).without(gone, 0)
    found = leaving(model, batch, Plan(PruneTokens()))
    assert float((found[0, kept] - expected[0]).abs().max()) < EQUAL


def test_entering_late_and_leaving_early_compose(twin: Any) -> None:
    """docs/method.md (a6): the two may be combined; in between, both kinds see each other."""
    model = twin().model
    batch = encode(model, "middle")
    copied = eager_copy(twin().plain)
    hand = ByHand(copied, copied.model.language_model, batch.inputs)
    seen = batch.inputs["input_ids"][0] == tiny.IMAGE_ID
    everyone = torch.arange(hand.length)
    text = everyone[~seen]
    whole = hand.entry.clone()
    whole[:, text] = hand.through(hand.entry[:, text], 0, 1, text)
    whole = hand.through(whole, 1, 3, everyone)
    expected = hand.logits(hand.through(whole[:, text], 3, N, text))[0, -1]
    plan = Plan(InjectTokens(layer=1), WithdrawTokens(layer=3))
    assert float((model.run(batch, plan).logits[0] - expected).abs().max()) < EQUAL


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda: PruneTokens(tokens="visual & text"), "do nothing"),
        (lambda: PruneTokens(tokens="text"), "last token of sample 0"),
        (lambda: PruneTokens(layer=N), f"layer {N}"),
        (lambda: WithdrawTokens(layer=N), f"layer {N}"),
        (lambda: InjectTokens(layer=N + 1), f"layer {N + 1}"),
        (lambda: WithdrawTokens(), "layer"),
        (lambda: InjectTokens(layer=1, norm="max"), "norm"),
        (lambda: PruneTokens(phase="prefill"), "phase"),
        (lambda: PruneTokens(layer=-1), "layer"),
    ],
)
def test_what_cannot_be_done_is_refused(twin: Any, operation: Any, message: str) -> None:
    model = twin().model
    with pytest.raises(InputError, match=message):
        model.run(encode(model, "middle"), Plan(operation()))


def test_models_that_cannot_are_refused() -> None:
    mixed = opened("qwen3_5", "sdpa")
    batch = mixed.batch(built("qwen3_5").inputs)
    with pytest.raises(Unsupported, match="without a mask over keys"):
        mixed.run(batch, Plan(PruneTokens()))
    # Its last layer has keys: tokens can be withdrawn there.
    mixed.run(batch, Plan(WithdrawTokens(layer=mixed.n_layers - 1)))


# ---------------------------------------------------------------- rows taken out


REMOVE = Plan(PruneTokens(tokens="dead", method="remove"))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_removed_rows_of_a_padded_batch_equal_layers_called_by_hand(twin: Any, attn: str) -> None:
    model, copied = twin("llama", attn).model, eager_copy(twin("llama", attn).plain)
    batch, gone = marked(encode(model, "ragged"))
    found = model.run(batch, REMOVE).logits
    ids, logits = generated(model, REMOVE, batch, 4)
    for row, single in enumerate(singles(model)):
        inputs = longer("llava", single.inputs, ids[row : row + 1])
        hand = ByHand(copied, copied.model.language_model, inputs)
        missing = torch.cat([gone[row, -single.length :], torch.zeros(4, dtype=torch.bool)])
        expected = hand.logits(hand.without(missing, 0)[0])[0]
        assert float((found[row] - expected[-5]).abs().max()) < EQUAL
        for step, read in enumerate(logits):
            assert float((read[row] - expected[step - 5]).abs().max()) < EQUAL, step


def test_a_removed_sequence_is_shorter_in_every_layer(twin: Any) -> None:
    model = twin().model
    batch, gone = marked(encode(model, "middle"))
    with model.trace(batch, REMOVE):
        first = model.layers[0].input.save()
        last = model.layers[N - 1].output.save()
    assert first.shape[1] == last.shape[1] == batch.length - int(gone.sum())


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_renumbered_rows_equal_a_decoder_that_counts_for_itself(twin: Any, attn: str) -> None:
    model, copied = twin("llama", attn).model, eager_copy(twin("llama", attn).plain)
    batch, gone = marked(encode(model, "ragged"))
    plan = Plan(PruneTokens(tokens="dead", method="remove", positions="renumber"))
    found, kept_apart = model.run(batch, plan).logits, model.run(batch, REMOVE).logits
    ids, logits = generated(model, plan, batch, 4)
    for row, single in enumerate(singles(model)):
        inputs = longer("llava", single.inputs, ids[row : row + 1])
        hand = ByHand(copied, copied.model.language_model, inputs)
        missing = torch.cat([gone[row, -single.length :], torch.zeros(4, dtype=torch.bool)])
        with torch.no_grad():
            left = hand.entry[:, ~missing]
            states = copied.model.language_model(inputs_embeds=left, use_cache=False)
            expected = copied.lm_head(states.last_hidden_state)[0]
        assert float((found[row] - expected[-5]).abs().max()) < EQUAL
        for step, read in enumerate(logits):
            assert float((read[row] - expected[step - 5]).abs().max()) < EQUAL, step
    assert float((found - kept_apart).abs().max()) > MOVED


def test_renumbering_is_refused_where_it_means_nothing() -> None:
    for impossible in ({"method": "mask"}, {"layer": 1}, {"layer": 1, "method": "remove"}):
        with pytest.raises(InputError, match="method='remove', layer=0"):
            PruneTokens(positions="renumber", **impossible)
    model = opened("qwen2_5_vl", "sdpa")
    batch, _ = marked(model.batch(built("qwen2_5_vl").inputs))
    with pytest.raises(Unsupported, match="places in the image"):
        model.run(batch, Plan(PruneTokens(tokens="dead", method="remove", positions="renumber")))


def test_removing_nothing_changes_no_bit(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    plan = Plan(PruneTokens(tokens="visual & text", method="remove", allow_empty=True))
    assert torch.equal(model.run(batch, plan).logits, model.run(batch).logits)


def test_what_a_shorter_sequence_cannot_give_is_refused(twin: Any) -> None:
    model = twin().model
    batch, _ = marked(encode(model, "middle"))
    with pytest.raises(InputError, match="method='mask'"):
        model.run(batch, REMOVE, capture="residual")
    with pytest.raises(InputError, match="method='mask'"):
        model.run(batch, REMOVE, logits="all")
    with pytest.raises(InputError, match="method='mask'"):
        model.run(batch, REMOVE + Plan(WithdrawTokens(layer=2)))
    with pytest.raises(InputError, match="last token"):
        model.run(batch, Plan(PruneTokens(tokens="last", method="remove")))


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "exaone4_5", "qwen3_5", "gemma4"])
def test_where_rows_are_counted_removal_is_refused(name: str) -> None:
    model = opened(name, "sdpa")
    batch, _ = marked(model.batch(built(name).inputs))
    with pytest.raises(Unsupported, match="method='mask'"):
        model.run(batch, REMOVE)


def test_a_decoder_that_embeds_its_input_itself_is_refused() -> None:
    model = opened("chameleon", "sdpa")
    batch, _ = marked(model.batch(built("chameleon").inputs))
    with pytest.raises(Unsupported, match=r"embeds its input itself.*method='mask'"):
        model.run(batch, REMOVE)
