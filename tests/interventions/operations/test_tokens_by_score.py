"""Tokens chosen by their score: FastV and others, in the pass that edits them or one before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import eager_copy, opened, padded, plain
from builders.generations import decoded, generated
from builders.prompts import visual_of
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
    VisualLM,
    ZeroFFN,
)
from embedlens.interventions import AttentionFrom, Bottom, Cosine, Name, Norm, Top, parse_selector
from embedlens.interventions.program.steps import Choose
from embedlens.lens.runs.plan_protocol import Pass
from families.family import noise
from families.zoo import built
from oracles.best_scored import attention_scores, entering_states, picked
from oracles.dropped_tokens import ByHand
from oracles.knockouts import longer
from tolerances import EQUAL, MOVED

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "internvl", "paligemma", "idefics3",
            "mistral3", "glm4v")  # fmt: skip
ATTENTION = "by=attention(last), layer=1"
OWN = Pass("forward", own=True)


def fastv(share: float = 0.5, layer: int = 2, **more: Any) -> Plan:
    tokens = f"bottom({share}, by=attention(last), layer={layer - 1}, within=visual)"
    return Plan(PruneTokens(tokens=tokens, layer=layer, **more))


def at_end(batch: Batch) -> Tensor:
    last = torch.zeros(len(batch), batch.length, dtype=torch.bool)
    last[:, -1] = True
    return last


PROMPTS = {"middle": [0], "two": [1, 2], "short": [3]}


def ragged(model: VisualLM) -> Batch:
    """Prompts of different lengths, with one image and two, which end with a word."""
    images = [[tiny.image(seed) for seed in seeds] for seeds in PROMPTS.values()]
    return model.encode(images, [tiny.PROMPTS[prompt] for prompt in PROMPTS])


def least_looked_at(copied: Any, batch: Batch, layer: int, share: float = 0.5) -> Tensor:
    """By the plain eager model: the visual tokens that the last token looks at least."""
    scores = attention_scores(copied, batch.inputs, layer, at_end(batch))
    return picked(scores, visual_of(batch), share, highest=False)


def gap(one: Tensor, other: Tensor) -> float:
    """Largest difference, in units of the logits' spread where that is more than 1."""
    shown = other > -1e30  # some models forbid some words
    return float((one - other).abs().max()) / max(1.0, float(other[shown].std()))


# ---------------------------------------------------------------- FastV, layers called by hand


@pytest.mark.quick("llava")
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_fastv_equals_layers_called_by_hand_in_families(name: str, attn: str) -> None:
    model, copied = opened(name, attn), plain(name)
    batch = model.encode([noise(built(name).size)], [built(name).prompt])
    decoder = copied.get_submodule(model.anatomy.decoder)
    hand = ByHand(copied, decoder, batch.inputs)
    for layer in (1, model.n_layers - 1):
        gone = least_looked_at(copied, batch, layer - 1)
        plan = fastv(layer=layer)
        assert isinstance(plan.compile(model, batch, OWN).steps[0], Choose)
        expected = hand.logits(hand.without(gone[0], layer)[0])[:, -1]
        found = model.run(batch, plan).logits
        assert gap(found, expected) < EQUAL
        assert gap(found, hand.clean[:, -1]) > MOVED
        # Another half of the image, and the outcome is another.
        other = visual_of(batch)[0] & ~gone[0]
        assert gap(found, hand.logits(hand.without(other, layer)[0])[:, -1]) > MOVED


@pytest.mark.full
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3"])
def test_fastv_in_padded_batches_equals_each_prompt_alone(name: str) -> None:
    model, copied, family = opened(name, "sdpa"), plain(name), built(name)
    found = model.run(padded(name, model), fastv(layer=1)).logits
    for row, prompt in enumerate((family.prompt, f"{family.prompt} red star ?")):
        single = model.encode([noise(family.size, row + 1)], [prompt])
        hand = ByHand(copied, copied.get_submodule(model.anatomy.decoder), single.inputs)
        gone = least_looked_at(copied, single, 0)[0]
        assert gap(found[row], hand.logits(hand.without(gone, 1)[0])[0, -1]) < EQUAL


@pytest.mark.full
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_fastv_generates_as_layers_called_by_hand_over_a_shorter_cache(
    twin: Any, attn: str
) -> None:
    model, copied, count = twin("llama", attn).model, eager_copy(twin("llama", attn).plain), 4
    batch, layer = ragged(model), 2
    out = decoded(model, fastv(0.35, layer), batch, count)
    ids = out.sequences[:, -count:]
    lengths = []
    for row, (prompt, seeds) in enumerate(PROMPTS.items()):
        single = model.encode([[tiny.image(seed) for seed in seeds]], [tiny.PROMPTS[prompt]])
        gone = least_looked_at(copied, single, layer - 1, 0.35)[0]
        lengths.append(single.length - int(gone.sum()))
        hand = ByHand(copied, copied.model.language_model,
                      longer("llava", single.inputs, ids[row : row + 1]))  # fmt: skip
        missing = torch.cat([gone, torch.zeros(count, dtype=torch.bool)])
        expected = hand.logits(hand.without(missing, layer)[0])[0]
        for step, found in enumerate(out.logits):
            assert gap(found[row], expected[step - count - 1]) < EQUAL, (row, step)
    held = [int(out.past_key_values.get_seq_length(i)) for i in range(tiny.LAYERS)]
    full, short = batch.length + count - 1, max(lengths) + count - 1
    assert short < full
    assert held == [full] * layer + [short] * (tiny.LAYERS - layer)


# ---------------------------------------------------------------- which tokens


@pytest.fixture(scope="module")
def model(twin: Any) -> VisualLM:
    found: VisualLM = twin().model
    return found


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    return ragged(model)


def chosen(model: VisualLM, batch: Batch, tokens: Any) -> Tensor:
    """Which tokens a run keeps, ``[sample, token]``."""
    run = model.run(batch, capture="residual", layers=[0], tokens=tokens)
    found = torch.zeros(len(batch), batch.length, dtype=torch.bool)
    found[run.sample, run.position] = True
    return found


@pytest.mark.full
@pytest.mark.parametrize("amount", [3, 0.5, 0.3, 1.0, np.int64(2), np.float64(0.25)])
@pytest.mark.parametrize("highest", [True, False])
def test_the_best_tokens_are_those_of_a_plain_model(
    twin: Any, model: VisualLM, batch: Batch, amount: Any, highest: bool
) -> None:
    kind = Top if highest else Bottom
    copied = eager_copy(twin().plain)
    plainly = amount.item() if isinstance(amount, np.generic) else amount
    states = entering_states(copied, batch.inputs, 2)
    word = copied.get_input_embeddings().weight[tiny.VOCABULARY.index("red")].detach()
    queries = batch.inputs["attention_mask"].bool() & ~visual_of(batch)
    scores = {
        Norm(): states.norm(dim=-1),
        Cosine("red"): torch.nn.functional.cosine_similarity(states, word, dim=-1),
        Cosine(word * 3): torch.nn.functional.cosine_similarity(states, word, dim=-1),
        AttentionFrom(Name("text")): attention_scores(copied, batch.inputs, 2, queries),
        AttentionFrom(Name("last")): attention_scores(copied, batch.inputs, 2, at_end(batch)),
    }
    for by, expected in scores.items():
        found = chosen(model, batch, kind(amount, by=by, layer=2))
        assert torch.equal(found, picked(expected, visual_of(batch), plainly, highest=highest)), by
    everyone = batch.inputs["attention_mask"].bool()
    function = kind(
        amount, by=lambda states: states[:, 1], layer=2, within=Name("visual") | Name("text")
    )
    assert torch.equal(chosen(model, batch, function),
                       picked(states[..., 1], everyone, plainly, highest=highest))  # fmt: skip


def test_of_equal_scores_the_earlier_tokens_are_taken(model: VisualLM, batch: Batch) -> None:
    alike = chosen(model, batch, Top(3, by=lambda states: torch.zeros(len(states)), layer=0))
    assert torch.equal(alike, visual_of(batch) & (visual_of(batch).cumsum(1) <= 3))
    lowest = chosen(model, batch, Bottom(3, by=lambda states: torch.zeros(len(states)), layer=0))
    assert torch.equal(lowest, alike)


# ---------------------------------------------------------------- in the pass and before it

OPERATIONS: dict[str, Any] = {
    "remove": lambda t: PruneTokens(tokens=t, layer=2, method="remove"),
    "mask": lambda t: PruneTokens(tokens=t, layer=2, method="mask"),
    "zero": lambda t: ZeroFFN(tokens=t, layers="1-3"),
    "attention": lambda t: AblateAttention(tokens=t, layers="1-2"),
    "noise": lambda t: ReplaceTokens(tokens=t, by="noise", seed=3, layers=[2, 3]),
    "scale": lambda t: ScaleTokens(tokens=t, factor=3.0, layers=2),
}
SCORES: Any = (
    f"top(0.4, {ATTENTION})",
    "bottom(3, by=norm, layer=1)",
    'top(0.3, by=cosine("red"), layer=1)',
)


CASES = [(kind, SCORES[0], "sdpa") for kind in OPERATIONS]
REST = [(kind, tokens, "sdpa") for kind in OPERATIONS for tokens in SCORES[1:]]
REST += [(kind, SCORES[0], "eager") for kind in OPERATIONS]


@pytest.mark.parametrize(
    ("kind", "tokens", "attn"),
    [*CASES[:1], *(pytest.param(*case, marks=pytest.mark.full) for case in CASES[1:] + REST)],
)
def test_tokens_chosen_in_the_pass_are_those_chosen_before(
    twin: Any, kind: str, tokens: str, attn: str
) -> None:
    """Equal, bit for bit, to naming them; so are the passes of a generation, in all its modes."""
    model = twin("llama", attn).model
    batch = ragged(model)
    held = batch.with_tokens(mine=chosen(model, batch, tokens))
    one, named = Plan(OPERATIONS[kind](tokens)), Plan(OPERATIONS[kind]("mine"))
    steps = one.compile(model, batch, OWN).steps
    assert isinstance(steps[0], Choose)
    assert len(steps) == len(named.compile(model, held).steps) + 1
    # The tokens that stood in for them are other ones.
    assert not torch.equal(steps[0].guess, chosen(model, batch, tokens))
    found = model.run(batch, one).logits
    assert torch.equal(found, model.run(held, named).logits)
    assert float((found - model.run(batch).logits).abs().max()) > MOVED
    assert gap(model.run_many(batch, [None, one])[1].logits, found) < EQUAL
    answers = ["a b"] * len(batch)
    assert torch.equal(model.score(batch, answers, one).logprob,
                       model.score(held, answers, named).logprob)  # fmt: skip
    ids, logits = generated(model, one, batch, 3)
    expected, theirs = generated(model, named, held, 3)
    assert torch.equal(ids, expected)
    assert all(torch.equal(a, b) for a, b in zip(logits, theirs, strict=True))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 2])
def test_attention_is_zeroed_in_the_layer_whose_weights_choose(
    twin: Any, layer: int, attn: str
) -> None:
    """In the pass and in generations, by hooks on the plain eager model."""
    model, copied = twin("llama", attn).model, eager_copy(twin("llama", attn).plain)
    batch = ragged(model)
    tokens = f"bottom(0.5, by=attention(last), layer={layer}, within=visual)"
    plan = Plan(AblateAttention(tokens=tokens, layers=layer))
    assert isinstance(plan.compile(model, batch, OWN).steps[0], Choose)
    where = least_looked_at(copied, batch, layer)

    def zero(_: Any, __: Any, output: Any) -> Any:
        whole = output[0].shape[1] == batch.length
        return (output[0].masked_fill(where[..., None], 0.0), *output[1:]) if whole else output

    mixer = copied.model.language_model.layers[layer].self_attn
    told: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    told["suppress_tokens"] = [tiny.IMAGE_ID]
    with mixer.register_forward_hook(zero), torch.no_grad():
        expected = copied(**batch.inputs).logits[:, -1]
        written = copied.generate(**batch.inputs, **told)[:, batch.length :]
    assert gap(model.run(batch, plan).logits, expected) < EQUAL
    assert gap(model.run_many(batch, [None, plan])[1].logits, expected) < EQUAL
    assert gap(model.run(batch).logits, expected) > MOVED
    assert model.generate_ids(batch, plan, **told) == written.tolist()


@pytest.mark.full
@pytest.mark.parametrize("asked", [{"use_cache": False}, {"num_beams": 3}])
@pytest.mark.parametrize("kind", ["remove", "mask", "zero", "attention"])
def test_modes_of_generation_choose_the_same_tokens(
    model: VisualLM, batch: Batch, kind: str, asked: dict[str, Any]
) -> None:
    held = batch.with_tokens(mine=chosen(model, batch, SCORES[0]))
    one, named = (Plan(OPERATIONS[kind](tokens)) for tokens in (SCORES[0], "mine"))
    found = decoded(model, one, batch, 3, **asked).sequences
    assert torch.equal(found, decoded(model, named, held, 3, **asked).sequences)


BEFORE: dict[str, Any] = {
    "above the edit": Plan(ZeroFFN(tokens="top(3, by=norm, layer=3)", layers=1)),
    "at the edit": Plan(BlockAttention(queries="last", keys=f"top(3, {ATTENTION})", layers=1)),
    "with others": Plan(ScaleTokens(tokens="visual", factor=2.0, layers=0),
                        ZeroFFN(tokens=f"top(3, {ATTENTION})", layers=2)),
    "in a part": Plan(ZeroFFN(tokens=f"top(0.4, {ATTENTION}) & row[0:2]", layers=2)),
    "states of each": Plan(PatchTokens(tokens="top(3, by=norm, layer=0)", source=1, target=2)),
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("case", BEFORE)
def test_what_the_pass_cannot_choose_is_chosen_before(
    model: VisualLM, batch: Batch, case: str
) -> None:
    """With the other operations in force, and without the one that asks."""
    plan = BEFORE[case]
    asking = plan.operations[-1]
    alone = case != "with others"
    assert alone != any(isinstance(s, Choose) for s in plan.compile(model, batch, OWN).steps)
    role = "keys" if isinstance(asking, BlockAttention) else "tokens"
    text = str(getattr(asking, role))
    scored = text.partition(" & ")[0]
    others = Plan(*plan.operations[:-1])
    run = model.run(batch, others, capture="residual", layers=[0], tokens=scored)
    mine = torch.zeros(len(batch), batch.length, dtype=torch.bool)
    mine[run.sample, run.position] = True
    given = {k: v for k, v in asking if k != role} | {role: text.replace(scored, "mine")}
    named = others + Plan(type(asking)(**given))
    held = batch.with_tokens(mine=mine)
    assert torch.equal(model.run(batch, plan).logits, model.run(held, named).logits)
    if len(others):
        clean = chosen(model, batch, scored)
        assert not torch.equal(clean, mine), "the others should change what is chosen"


@pytest.mark.full
def test_a_second_stage_sees_what_the_first_one_left(model: VisualLM, batch: Batch) -> None:
    """Two stages of pruning, each by the attention of the layer before it, as PyramidDrop has."""
    # What the first stage dropped is looked at by nobody, and comes last in the second.
    first, second = (
        f"bottom({share}, by=attention(last), layer={n}, within=visual)"
        for share, n in ((0.3, 0), (0.6, 2))
    )
    plan = Plan(PruneTokens(tokens=first, layer=1), PruneTokens(tokens=second, layer=3))
    held = batch.with_tokens(early=chosen(model, batch, first))
    early = Plan(PruneTokens(tokens="early", layer=1, method="mask"))
    run = model.run(held, early, capture="residual", layers=[0], tokens=second)
    late = torch.zeros(len(batch), batch.length, dtype=torch.bool)
    late[run.sample, run.position] = True
    assert not torch.equal(late, chosen(model, batch, second))
    named = early + Plan(PruneTokens(tokens="second", layer=3, method="mask"))
    expected = model.run(held.with_tokens(second=late), named).logits
    assert torch.equal(model.run(batch, plan).logits, expected)


def test_a_score_is_read_in_the_layers_of_a_donor_s_run_or_refused(
    model: VisualLM, batch: Batch
) -> None:
    plan = Plan(
        ReplaceTokens(by="mean", from_tokens="top(3, by=norm, layer=1)", states="d", layers=1)
    )
    with pytest.raises(InputError, match="known only in a run"):
        model.run(batch, plan.given(d=batch))


@pytest.mark.full
def test_a_rehearsed_remote_run_chooses_the_same(model: VisualLM, batch: Batch) -> None:
    for tokens in (*SCORES, Top(3, by=lambda states: states[:, 0], layer=1)):
        plan = Plan(ZeroFFN(tokens=tokens, layers="2-3"))
        expected = model.run(batch, plan).logits
        assert torch.equal(model.run(batch, plan, remote="local").logits, expected)


def test_scaling_the_best_by_one_changes_no_bit(model: VisualLM, batch: Batch) -> None:
    plan = Plan(ScaleTokens(tokens=SCORES[0], factor=1.0, layers=2))
    assert torch.equal(model.run(batch, plan).logits, model.run(batch).logits)


def test_a_trace_has_the_chosen_tokens_in_it(model: VisualLM, batch: Batch) -> None:
    plan = Plan(ReplaceTokens(tokens=SCORES[0], by="zero", layers=2))
    with model.trace(batch, plan):
        entering = model.layers[2].input.save()
    zero = (entering == 0).all(-1)
    assert torch.equal(zero, chosen(model, batch, SCORES[0]))


def test_the_cost_counts_the_queries_or_the_pass(model: VisualLM, batch: Batch) -> None:
    within, before = fastv(0.5, 2), Plan(ZeroFFN(tokens="top(3, by=norm, layer=3)", layers=1))
    cost, other = within.cost(model, batch).total, before.cost(model, batch).total
    assert 0 < cost["spent"] < 0.05 * cost["clean"]
    assert other["spent"] == other["clean"]
    held = batch.with_tokens(mine=chosen(model, batch, within.operations[0].tokens))
    named = Plan(PruneTokens(tokens="mine", layer=2)).cost(model, held).total
    assert (cost["saved"], cost["skipped"]) == (named["saved"], named["skipped"])


# ---------------------------------------------------------------- words, text and refusals


def test_plans_by_score_are_written_and_described(model: VisualLM, batch: Batch) -> None:
    plan = fastv()
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert "known by their score in a run" in plan.describe(model, batch)
    with pytest.raises(InputError, match="known only in a run"):
        plan.chosen(batch)
    function = Plan(ZeroFFN(tokens=Name("visual") & ~Top(3, by=torch.linalg.vector_norm, layer=1)))
    assert "top(3, by=<" in str(function)
    assert function == Plan(*function)
    with pytest.raises(InputError, match=r"operations\.0\.tokens: .*has no text"):
        function.to_yaml()
    vector = Plan(ZeroFFN(), ZeroFFN(tokens=Top(3, by=Cosine(torch.ones(4)), layer=1)))
    with pytest.raises(InputError, match=r"operations\.1\.tokens: .*has no text"):
        vector.to_json()


REFUSED: dict[str, tuple[Any, str]] = {
    "too many": (Top(17, by=Norm(), layer=1, within=parse_selector("image[0]")), "has 16 tokens"),
    "no such word": (parse_selector('top(1, by=cosine("blau"), layer=1)'), "'blau' is no token"),
    "two words": (parse_selector('top(1, by=cosine("red star"), layer=1)'), "is 2 tokens"),
    "no queries": (
        parse_selector("top(1, by=attention(image[1]), layer=1)"),
        "has no token of image",
    ),
    "wrong width": (Top(1, by=Cosine(torch.ones(3)), layer=1), r"a vector \[32\]"),
    "no direction": (Top(1, by=Cosine(torch.zeros(32)), layer=1), "not zero"),
    "one number": (
        Top(1, by=lambda states: states.sum(), layer=1),
        r"returned \(\) for \d+ tokens",
    ),
    "no numbers": (Top(1, by=lambda states: [1.0], layer=1), "returned list"),
    "not finite": (Top(1, by=lambda states: states[:, 0] / 0, layer=1), "NaN or infinite"),
    "no layer": (Top(1, by=Norm(), layer=9), "no layer 9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scores_that_are_none_are_refused(model: VisualLM, batch: Batch, case: str) -> None:
    tokens, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        model.run(batch, capture="residual", layers=[0], tokens=tokens)
    with pytest.raises(InputError, match=words):
        model.run(batch, Plan(ZeroFFN(tokens=tokens, layers="2-3")))


@pytest.mark.parametrize(
    "text",
    ["top(0, by=norm, layer=1)", "top(1.5, by=norm, layer=1)", "top(0.0, by=norm, layer=1)",
     "top(-1, by=norm, layer=1)", "top(by=norm, layer=1)", "top(1, by=norm)", "top(1, layer=1)",
     "top(1, by=size, layer=1)", "top(1, by=norm, layer=-1)", "top(1, by=norm, layer=1, seed=2)",
     "top(1, by=norm, by=norm, layer=1)", "top(1, by=cosine(red), layer=1)",
     "top(1, by=attention(deed), layer=1)", "top(1, 2, by=norm, layer=1)",
     "top(1, by=norm, layer=1, within=top(2, by=norm, layer=0))"],
)  # fmt: skip
def test_what_is_no_score_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(InputError, match=r"\^"):
        parse_selector(text)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Top(0.5, by=AttentionFrom(Name("last")), layer=1),
         "top(0.5, by=attention(last), layer=1, within=visual)"),
        (Bottom(np.int64(3), by=Cosine("red"), layer=np.int64(0), within=~Name("last")),
         'bottom(3, by=cosine("red"), layer=0, within=~last)'),
    ],
)  # fmt: skip
def test_objects_and_text_are_the_same(made: Any, text: str) -> None:
    assert str(made) == text
    assert parse_selector(text) == made
    assert hash(parse_selector(text)) == hash(made)


def test_the_last_token_is_never_pruned_by_its_score(model: VisualLM, batch: Batch) -> None:
    tokens = "bottom(1.0, by=norm, layer=1, within=text & ~bos)"
    with pytest.raises(InputError, match="the last token of sample 0 is among"):
        model.run(batch, Plan(PruneTokens(tokens=tokens, layer=2)))
