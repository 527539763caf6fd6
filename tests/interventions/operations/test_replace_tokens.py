"""Overwritten and scaled tokens, against torch hooks on a model that nobody wrapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import batch_of, layers_of, pair
from builders.generations import generated
from builders.prompts import label_of, text_of, tiny_batch, visual_of
from embedlens import (
    Batch,
    InputError,
    Plan,
    ReplaceTokens,
    ScaleTokens,
    Unsupported,
    VisualLM,
    ZeroFFN,
)
from embedlens.interventions.engines.payload.written_values import means
from embedlens.interventions.operations.replace_tokens import derangement
from families.family import noise as picture
from families.zoo import built
from oracles.overwriting import (
    Overwrite,
    assert_overwritten,
    assert_overwritten_while_generating,
    class_mean_of,
    constant,
    from_places,
    mean_of,
    noise,
    overwritten,
    reading,
    times,
    to_norm_of,
    zero,
)
from tolerances import ACCUMULATED, EQUAL, LARGE, MOVED_A_LITTLE

# Mixed experts, several streams of features, other norms, sliding windows, three-part positions.
ZOO = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "mistral3", "aria", "molmo2")
PADDED = tuple(name for name in ZOO if name != "aria")
SEED = 5


def exchanged(where: Tensor, other: Sequence[int]) -> Tensor:
    """For every selected token its counterpart in the other sample."""
    found = [
        [other[row], int(position)]
        for row in range(len(where))
        for position in where[other[row]].nonzero()[:, 0]
    ]
    return torch.tensor(found)


Case = Callable[[Any, Batch], tuple[Plan, list[Overwrite]]]


def case(operation: Any, layers: tuple[int, ...], made: Callable[[Batch, Tensor], Any]) -> Case:
    def of(stack: Any, batch: Batch) -> tuple[Plan, list[Overwrite]]:
        where = visual_of(batch)
        edits = [Overwrite(stack[layer], made(batch, where), where) for layer in layers]
        return Plan(operation(layers=list(layers))), edits

    return of


def partial(kind: Any, **fields: Any) -> Any:
    return lambda **more: kind(**fields, **more)


FORWARD: dict[str, Case] = {
    "zero": case(partial(ReplaceTokens, by="zero"), (0, 2), lambda *_: zero),
    "mean": case(partial(ReplaceTokens, by="mean"), (1,), lambda _, v: mean_of(v)),
    "mean-of-text": case(
        partial(ReplaceTokens, by="mean", from_tokens="text"),
        (0, 1),
        lambda batch, _: mean_of(text_of(batch)),
    ),
    "class-mean": case(
        partial(ReplaceTokens, by="class-mean"), (1,), lambda b, v: class_mean_of(label_of(b), v)
    ),
    "noise": case(
        partial(ReplaceTokens, by="noise", seed=SEED),
        (0, 2),
        lambda batch, *_: noise(SEED, batch.contents),
    ),
    "scale": case(partial(ScaleTokens, factor=0.3), (0,), lambda *_: times(0.3)),
    "scale-back": case(partial(ScaleTokens, factor=-2.0), (1, 2), lambda *_: times(-2.0)),
    "norm": case(partial(ScaleTokens, norm_of="text"), (0, 2), lambda b, _: to_norm_of(text_of(b))),
}


@pytest.mark.parametrize("of", FORWARD.values(), ids=FORWARD)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ZOO)
def test_forward_equals_hooks(name: str, attn: str, of: Case) -> None:
    batch = batch_of(name, attn, two=False)
    assert_overwritten(name, attn, batch, *of(layers_of(pair(name, attn)[1], name), batch))


@pytest.mark.parametrize("of", FORWARD.values(), ids=FORWARD)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PADDED)
def test_padded_forward_equals_hooks(name: str, attn: str, of: Case) -> None:
    batch = batch_of(name, attn, two=True)
    assert not batch.inputs["attention_mask"].all()
    assert_overwritten(name, attn, batch, *of(layers_of(pair(name, attn)[1], name), batch))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("layer", [0, 1])
def test_tokens_of_the_other_sample_equal_hooks(name: str, attn: str, layer: int) -> None:
    batch, stack = batch_of(name, attn, two=True), layers_of(pair(name, attn)[1], name)
    where = visual_of(batch)
    edit = Overwrite(stack[layer], from_places(exchanged(where, (1, 0))), where)
    assert_overwritten(name, attn, batch, Plan(ReplaceTokens(by="other", layers=layer)), [edit])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "idefics3", "mistral3", "aria"])
def test_a_word_is_what_enters_for_it(name: str, attn: str) -> None:
    """The word is run by itself on the other copy: whatever is done to its embedding is in that."""
    (model, plain), batch = pair(name, attn), batch_of(name, attn, two=name != "aria")
    stack, found = layers_of(plain, name), []
    word = model.tokenizer("star", add_special_tokens=False).input_ids
    with torch.no_grad(), overwritten([reading(stack[0], found)]):
        plain(input_ids=torch.tensor([word]), attention_mask=torch.ones(1, 1, dtype=torch.long))
    edits = [
        Overwrite(stack[layer], constant(found[0][0, 0]), visual_of(batch)) for layer in (0, 2)
    ]
    plan = Plan(ReplaceTokens(by="word", word="star", layers="0,2"))
    assert_overwritten(name, attn, batch, plan, edits)
    rows = model.run(batch, plan, capture="residual", layers=[0]).residual[0]
    assert torch.equal(rows, rows[:1].expand_as(rows))


def test_an_embedding_that_is_scaled_enters_scaled() -> None:
    model, _ = pair("gemma3", "sdpa")
    assert model.anatomy.embedding_scale > 2
    batch = batch_of("gemma3", "sdpa", two=True)
    plan = Plan(ReplaceTokens(by="word", word="star"))
    rows = model.run(batch, plan, capture="residual", layers=[0]).residual[0]
    (star,) = model.tokenizer("star", add_special_tokens=False).input_ids
    assert torch.allclose(rows[0], model.embeddings[star] * model.anatomy.embedding_scale)


def test_where_positions_are_added_no_state_is_a_word_s() -> None:
    """Learned positions: the same word enters differently at each place."""
    model, _ = pair("blip-2", "sdpa")
    batch = model.encode(picture((64, 64)), "what is the red star")
    with pytest.raises(Unsupported, match="depends on more than the word"):
        model.run(batch, Plan(ReplaceTokens(by="word", word="star")))


# ---------------------------------------------------------------- generation and scoring

N = tiny.LAYERS
STEPS = 5


MADE: dict[str, tuple[Any, Callable[[Batch], Any]]] = {
    "zero": (partial(ReplaceTokens, by="zero"), lambda _: zero),
    "mean": (partial(ReplaceTokens, by="mean"), lambda b: mean_of(visual_of(b))),
    "noise": (partial(ReplaceTokens, by="noise", seed=SEED), lambda b: noise(SEED, b.contents)),
    "scale": (partial(ScaleTokens, factor=0.5), lambda _: times(0.5)),
    "norm": (partial(ScaleTokens, norm_of="visual"), lambda b: to_norm_of(visual_of(b))),
}


def tiny_case(
    plain: Any, batch: Batch, made: str, phase: str, layers: tuple[int, ...]
) -> tuple[Plan, list[Overwrite]]:
    operation, value = MADE[made]
    real = batch.inputs["attention_mask"].bool()
    # Text as well, so that generated tokens are meant.
    where = visual_of(batch) if phase == "prefill" else real
    generated = None if phase == "prefill" else torch.ones(len(batch), dtype=torch.bool)
    stack = plain.model.language_model.layers
    edits = [
        Overwrite(stack[layer], value(batch), where, generated, prompt=phase != "decode")
        for layer in layers
    ]
    tokens = "visual" if phase == "prefill" else "visual | text"
    return Plan(operation(layers=list(layers), tokens=tokens, phase=phase)), edits


@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["one", "ragged"])
def test_generation_equals_hooks(twin: Any, attn: str, name: str, made: str, phase: str) -> None:
    model, plain = twin("llama", attn).model, twin("llama", attn).plain
    batch = tiny_batch(model, name)
    plan, edits = tiny_case(plain, batch, made, phase, (1, 3))
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    settings["suppress_tokens"] = list(model.anatomy.visual_ids)
    more = {"return_dict_in_generate": True, "output_logits": True}
    clean = plain.generate(**batch.inputs, **settings, **more)
    with overwritten(edits):
        expected = plain.generate(**batch.inputs, **settings, **more)
    _, found = generated(model, plan, batch, STEPS)
    first = 1 if phase == "decode" else 0
    assert all(torch.equal(a, b) for a, b in zip(clean.logits[:first], found[:first], strict=True))
    assert (expected.logits[first] - clean.logits[first]).abs().max() > MOVED_A_LITTLE
    for ours, theirs in zip(found, expected.logits, strict=True):
        assert (ours - theirs).abs().max() < EQUAL
    texts = model.tokenizer.batch_decode(
        expected.sequences[:, batch.length :], skip_special_tokens=True
    )
    written = model.generate(batch, plan, max_new_tokens=STEPS, min_new_tokens=STEPS)
    assert written == [text.strip() for text in texts]


@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
@pytest.mark.parametrize("made", MADE)
def test_scores_equal_decoding_step_by_step(twin: Any, made: str, phase: str) -> None:
    model, plain = twin().model, twin().plain
    batch, answers = tiny_batch(model, "one"), ["a b red star"]
    plan, edits = tiny_case(plain, batch, made, phase, (1, 2))
    ids = [tiny.VOCABULARY.index(word) for word in answers[0].split()]
    expected = 0.0
    with torch.no_grad(), overwritten(edits):
        out = plain(**batch.inputs, use_cache=True)
        for token in ids:
            expected += float(out.logits[0, -1].double().log_softmax(-1)[token])
            out = plain(
                input_ids=torch.tensor([[token]]),
                past_key_values=out.past_key_values,
                use_cache=True,
            )
    assert float(model.score(batch, answers, plan).logprob) == pytest.approx(
        expected, abs=ACCUMULATED
    )


@pytest.mark.parametrize("phase", ["prefill", "decode", "all"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "internvl", "mistral3"]
)
def test_other_families_generate_as_with_hooks(name: str, attn: str, phase: str) -> None:
    (_, plain), batch = pair(name, attn), batch_of(name, attn, two=True)
    stack, visual = layers_of(plain, name), visual_of(batch)
    where = visual if phase == "prefill" else text_of(batch)
    later = None if phase == "prefill" else torch.ones(len(batch), dtype=torch.bool)
    edits = [
        Overwrite(stack[layer], made, where, later, prompt=phase != "decode")
        for layer, made in (
            (1, noise(SEED, batch.contents)),
            (2, to_norm_of(visual)),
            (0, mean_of(visual)),
        )
    ]
    told = {"tokens": "visual" if phase == "prefill" else "text", "phase": phase}
    plan = Plan(
        ReplaceTokens(by="noise", seed=SEED, layers=1, **told),
        ScaleTokens(norm_of="visual", layers=2, **told),
        ReplaceTokens(by="mean", layers=0, **told),
    )
    first = 1 if phase == "decode" else 0
    assert_overwritten_while_generating(name, attn, batch, plan, edits, first=first)


# ---------------------------------------------------------------- what depends on what


def test_noise_is_drawn_per_sample_whatever_the_padding(twin: Any) -> None:
    model = twin().model
    plan = Plan(ReplaceTokens(by="noise", seed=2, layers="0,2"))
    alone = model.encode([tiny.image(0)], [tiny.PROMPTS["short"]])
    longer = model.encode(
        [tiny.image(0), tiny.image(1)], [tiny.PROMPTS["short"], tiny.PROMPTS["middle"]]
    )
    assert longer.length > alone.length
    first = model.run(alone, plan, capture="residual", layers=[0])
    second = model.run(longer, plan, capture="residual", layers=[0])
    mine = second.residual[0][second.sample == 0]
    assert torch.equal(first.residual[0], mine)
    assert (first.logits[0] - second.logits[0]).abs().max() < EQUAL


def test_noise_has_the_norm_of_what_it_replaces_and_a_direction_of_its_own(twin: Any) -> None:
    model = twin().model
    batch = tiny_batch(model)
    clean = model.run(batch, capture="residual", layers=[0]).residual[0]

    def drawn(seed: int) -> Tensor:
        plan = Plan(ReplaceTokens(by="noise", seed=seed))
        return model.run(batch, plan, capture="residual", layers=[0]).residual[0]

    first = drawn(0)
    assert torch.allclose(first.norm(dim=-1), clean.norm(dim=-1), rtol=EQUAL)
    assert torch.equal(first, drawn(0))
    assert not torch.isclose(first, drawn(1)).all(-1).any()
    cosines = torch.nn.functional.normalize(first, dim=-1)
    apart = cosines @ cosines.T - torch.eye(len(first))
    assert apart.abs().max() < 0.95


@pytest.mark.parametrize("samples", [2, 3, 7])
def test_a_derangement_leaves_nobody_in_place(samples: int) -> None:
    drawn = [derangement(range(samples), seed) for seed in range(60)]
    for one in drawn:
        assert one is not None
        assert sorted(one.tolist()) == list(range(samples))
        assert (one != np.arange(samples)).all()
    assert (derangement(range(samples), 3) == derangement(range(samples), 3)).all()
    assert len({tuple(one.tolist()) for one in drawn if one is not None}) > (samples > 2)


def test_a_derangement_gives_nobody_what_is_like_its_own() -> None:
    """Nor does it depend on the order of the samples."""
    contents = [5, 5, 5, 9, 2, 7]
    for seed in range(40):
        drawn = derangement(contents, seed)
        assert drawn is not None
        assert sorted(drawn.tolist()) == list(range(6))
        assert all(contents[other] != own for own, other in zip(contents, drawn, strict=True))
    for seed in range(10):
        drawn = derangement([3, 1, 4, 2], seed)
        turned = derangement([2, 4, 1, 3], seed)
        assert [[3, 1, 4, 2][i] for i in drawn] == [[2, 4, 1, 3][i] for i in turned][::-1]
    assert derangement([5, 5, 5, 9], 0) is None
    assert derangement([5], 0) is None


def test_samples_that_are_all_alike_have_no_other(twin: Any) -> None:
    model = twin().model
    batch = model.encode([tiny.image(0)] * 3, [tiny.PROMPTS["middle"]] * 3)
    with pytest.raises(InputError, match="has no other"):
        model.run(batch, Plan(ReplaceTokens(by="other", layers=1)))


def test_the_seed_says_whose_tokens_are_taken(twin: Any) -> None:
    model = twin().model
    batch = model.encode([tiny.image(i) for i in range(4)], [tiny.PROMPTS["middle"]] * 4)
    clean = model.run(batch, capture="residual", layers=[1]).residual[1].view(4, -1, tiny.WIDTH)
    seen = set()
    for seed in range(8):
        plan = Plan(ReplaceTokens(by="other", layers=1, seed=seed))
        found = model.run(batch, plan, capture="residual", layers=[1]).residual[1]
        other = derangement(batch.contents, seed)
        assert torch.equal(found.view(4, -1, tiny.WIDTH), clean[torch.as_tensor(other)])
        seen.add(tuple(other.tolist()))
    assert len(seen) > 2


def test_a_mean_is_over_the_batch_as_it_is_there(twin: Any) -> None:
    """What earlier operations and layers changed is in the mean."""
    model, plain = twin().model, twin().plain
    batch, where = tiny_batch(model), visual_of(tiny_batch(model))
    stack = plain.model.language_model.layers
    plan = Plan(ScaleTokens(factor=3.0, layers=1), ReplaceTokens(by="mean", layers=1))
    edits = [Overwrite(stack[1], times(3.0), where), Overwrite(stack[1], mean_of(where), where)]
    with torch.no_grad(), overwritten(edits):
        expected = plain(**batch.inputs).logits[:, -1]
    assert (model.run(batch, plan).logits - expected).abs().max() < EQUAL


# ---------------------------------------------------------------- what changes nothing

NOTHING = {
    "scale-by-1": Plan(ScaleTokens(factor=1, layers="all", tokens="visual | text", phase="all")),
    "own-norm": Plan(ScaleTokens(norm_of="bos", tokens="bos", layers="all")),
    "mean-of-one": Plan(ReplaceTokens(by="mean", tokens="bos & ~visual", from_tokens="bos")),
}


@pytest.mark.parametrize("plan", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_doing_nothing_changes_no_bit(twin: Any, attn: str, plan: Plan) -> None:
    model, plain = twin("llama", attn).model, twin("llama", attn).plain
    batch = tiny_batch(model, "one")
    with torch.no_grad():
        expected = plain(**batch.inputs, use_cache=False).logits
        ids = plain.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(model.run(batch, plan, logits="all").logits, expected)
    (text,) = model.tokenizer.batch_decode(ids[:, batch.length :], skip_special_tokens=True)
    assert model.generate(batch, plan, max_new_tokens=3) == [text.strip()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_identical_tokens_is_that_token(dtype: torch.dtype) -> None:
    made = tiny.build(seed=2)
    model = VisualLM(made.model.to(dtype), made.processor)
    batch = model.encode([tiny.image(4)] * 3, [tiny.PROMPTS["middle"]] * 3)
    unlike = model.encode([tiny.image(i) for i in range(3)], [tiny.PROMPTS["middle"]] * 3)
    # Words enter alike in every sample; further up, rows of a product are rounded each in its way.
    plans = (
        (batch, Plan(ReplaceTokens(by="mean", tokens="bos", from_tokens="bos"))),
        (unlike, Plan(ReplaceTokens(by="other", tokens="text"))),
        (batch, Plan(ScaleTokens(norm_of="bos", tokens="bos", layers="all"))),
    )
    for given, plan in plans:
        clean = model.run(given, logits="all").logits
        assert torch.equal(model.run(given, plan, logits="all").logits, clean)


def test_means_of_three_identical_rows_round_to_nothing_else() -> None:
    rows = torch.randn(50, 1, 16, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1)
    for row in rows:
        assert torch.equal(means(row, torch.zeros(3, dtype=torch.long))[0], row[0])


@pytest.mark.parametrize("name", ["qwen3_vl", "granite4_vision", "molmo2", "gemma4", "lfm2_vl"])
def test_scaling_by_1_changes_no_bit_in_other_families(name: str) -> None:
    model, _ = pair(name, "sdpa")
    batch = model.batch(built(name).inputs)
    plan = Plan(ScaleTokens(factor=1.0, layers="all"))
    clean = model.run(batch, logits="all").logits
    assert torch.equal(model.run(batch, plan, logits="all").logits, clean)


def test_what_somebody_has_read_before_is_not_overwritten(twin: Any) -> None:
    """Written on a clone: the layer before returned the same tensor."""
    model = twin().model
    batch = tiny_batch(model, "one")
    with model.trace(batch):
        expected = model.layers[1].output.clone().save()
    for operation in (
        ReplaceTokens(by="zero", layers=2),
        ReplaceTokens(by="mean", layers=2),
        ReplaceTokens(by="noise", layers=2),
        ScaleTokens(factor=0.1, layers=2),
    ):
        with model.trace(batch, Plan(operation)):
            kept = model.layers[1].output.save()
            after = model.layers[2].input.save()
        assert torch.equal(kept, expected)
        assert not torch.equal(after, expected)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("made", ["mean", "noise", "scale", "norm"])
def test_gradients_flow_through_what_is_written(twin: Any, made: str) -> None:
    model, plain = twin("llama", "eager").model, twin("llama", "eager").plain
    batch = tiny_batch(model)
    plan, edits = tiny_case(plain, batch, made, "prefill", (0, 2))
    pixels = batch.inputs["pixel_values"].clone().requires_grad_()
    with overwritten(edits):
        loss = plain(**{**batch.inputs, "pixel_values": pixels}).logits[:, -1].square().sum()
    (expected,) = torch.autograd.grad(loss, pixels)
    own = batch.inputs["pixel_values"].clone().requires_grad_()
    fed = Batch({**batch.inputs, "pixel_values": own}, batch.visual, batch.prompts, batch.images)
    with model.trace(fed, plan, grad=True):
        out = model.nn.output.logits[:, -1].square().sum().save()
    (found,) = torch.autograd.grad(out, own)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() < LARGE * expected.abs().max()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"by": "word"}, "go together"),
        ({"by": "zero", "word": "star"}, "go together"),
        ({"by": "zero", "states": "a"}, "takes no states"),
        ({"by": "noise", "from_tokens": "text"}, "takes no states"),
        ({"by": "mean", "seed": 3}, "nothing is drawn"),
        ({"by": "other", "seed": 3, "states": "a"}, "nothing is drawn"),
        ({"by": "other", "phase": "decode"}, "phase='prefill'"),
        ({"by": "median"}, "by"),
        ({"by": "mean", "states": "a b"}, "one word"),
        ({"by": "noise", "seed": -1}, "seed"),
    ],
)
def test_fields_without_a_part_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        ReplaceTokens(**fields)


@pytest.mark.parametrize("fields", [{}, {"factor": 1, "norm_of": "text"}])
def test_scaling_is_by_a_factor_or_to_a_norm(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="norm_of is to be matched"):
        ScaleTokens(**fields)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_factor_is_a_number(factor: float) -> None:
    with pytest.raises(InputError, match="finite"):
        ScaleTokens(factor=factor)


REFUSED = {
    "word-of-two-tokens": (ReplaceTokens(by="word", word="red star"), "2 tokens"),
    "unknown-word": (ReplaceTokens(by="word", word="xylophone"), "no token of this model"),
    "placeholder": (ReplaceTokens(by="word", word="<image>"), "stands for visual tokens"),
    "no-such-layer": (ReplaceTokens(by="zero", layers=N), "no layer"),
    "other-of-two-layers": (ReplaceTokens(by="other", layers="0-1"), "exchanged again"),
    "other-in-number": (ReplaceTokens(by="other", tokens="text"), "equally many"),
    "mean-of-nothing": (ReplaceTokens(by="mean", from_tokens="image[4]"), "there is no mean"),
    "class-of-text": (ReplaceTokens(by="class-mean", tokens="text"), "has no class"),
    "class-without-members": (
        ReplaceTokens(by="class-mean", tokens="dead", from_tokens="alive"),
        "none is among",
    ),
    "norm-of-nothing": (ScaleTokens(norm_of="image[4]"), "whose norm could be taken"),
    "nothing-meant": (ReplaceTokens(by="zero", tokens="image[4]"), "would do nothing"),
}


@pytest.mark.parametrize(("operation", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_is_refused(twin: Any, operation: Any, reason: str) -> None:
    model = twin().model
    with pytest.raises(InputError, match=reason):
        model.run(tiny_batch(model), Plan(operation))


def test_one_token_of_the_other_sample_is_not_used_for_many(twin: Any) -> None:
    """As a patch would: only where from_tokens says which one."""
    model = twin().model
    batch = model.encode(
        [[tiny.image(0), tiny.image(1)], [tiny.image(2)]],
        [tiny.PROMPTS["two"], tiny.PROMPTS["end"]],
    )
    tokens = {"tokens": "image[1] | bos"}
    with pytest.raises(InputError, match="17 tokens of sample 0 are to get states of 1 tokens"):
        model.run(batch, Plan(ReplaceTokens(by="other", **tokens)))
    model.run(batch, Plan(ReplaceTokens(by="other", from_tokens="bos", **tokens)))


def test_one_sample_has_no_other(twin: Any) -> None:
    model = twin().model
    with pytest.raises(InputError, match=r"plan\.given\(name=batch\)"):
        model.run(tiny_batch(model, "one"), Plan(ReplaceTokens(by="other")))


def test_generated_tokens_have_no_class(twin: Any) -> None:
    model = twin().model
    plan = Plan(ReplaceTokens(by="class-mean", tokens="generated", phase="decode"))
    for run in (
        lambda: model.generate(tiny_batch(model), plan),
        lambda: model.score(tiny_batch(model), ["a", "b", "x"], plan),
    ):
        with pytest.raises(InputError, match="generated tokens have no class"):
            run()


def test_classes_have_to_be_known(twin: Any) -> None:
    model = twin().model
    batch = model.encode([tiny.image(0)], [tiny.PROMPTS["middle"]])
    with pytest.raises(InputError, match="this batch has none"):
        model.run(batch, Plan(ReplaceTokens(by="class-mean")))


def test_a_word_needs_a_prompt_to_be_looked_at_in(twin: Any) -> None:
    model = twin().model
    batch = model.encode([tiny.image(0)], ["<image>"])
    with pytest.raises(InputError, match="two ordinary words"):
        model.run(batch, Plan(ReplaceTokens(by="word", word="star")))


def test_states_that_generation_never_computes_are_neither_read_nor_written() -> None:
    model, _ = pair("gemma4", "sdpa")
    batch = model.batch(built("gemma4").inputs)
    lazy = model.anatomy.last_token_layers[0]
    for operation in (
        ReplaceTokens(by="mean", tokens="last", layers=lazy),
        ScaleTokens(norm_of="visual", tokens="last", layers=lazy),
    ):
        with pytest.raises(Unsupported, match="only the last token"):
            model.generate(batch, Plan(operation), max_new_tokens=2)
        model.run(batch, Plan(operation))


def test_empty_is_accepted_where_it_is_said(twin: Any) -> None:
    model = twin().model
    batch = tiny_batch(model)
    plan = Plan(
        *(
            ReplaceTokens(by=by, tokens="image[4]", allow_empty=True)
            for by in ("zero", "mean", "other")
        ),
        ScaleTokens(norm_of="text", tokens="image[4]", allow_empty=True),
        ReplaceTokens(by="word", word="star", tokens="image[4]", allow_empty=True),
    )
    assert not plan.compile(model, batch)


def test_plans_of_these_survive_being_written_and_read() -> None:
    plan = Plan(
        ReplaceTokens(by="noise", seed=4, layers="1-3", phase="all", tokens="visual|text"),
        ReplaceTokens(by="mean", states="there", from_tokens="image[0]"),
        ReplaceTokens(by="word", word="star"),
        ScaleTokens(factor=0.01),
        ScaleTokens(norm_of="text & ~bos", layers="all"),
        ZeroFFN(layers=1),
    )
    for again in (Plan.from_yaml(plan.to_yaml()), Plan.from_json(plan.to_json())):
        assert again == plan
        assert hash(again) == hash(plan)
    assert Plan.from_yaml("operations: [{op: scale-tokens, factor: 1}]") == Plan(
        ScaleTokens(factor=1.0)
    )


def test_the_callers_model_stays_as_it_was() -> None:
    made = tiny.build(seed=6)
    before = {name: weight.clone() for name, weight in made.model.named_parameters()}
    state = torch.get_rng_state()
    model = VisualLM(made.model, made.processor)
    batch = tiny_batch(model)
    inputs = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    model.run(
        batch,
        Plan(
            ReplaceTokens(by="word", word="star", layers=0),
            ReplaceTokens(by="noise", layers=1),
            ReplaceTokens(by="other", layers=2, tokens="visual"),
        ),
    )
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in made.model.named_parameters())
    assert all(torch.equal(inputs[name], tensor) for name, tensor in batch.inputs.items())
