"""Tokens chosen by score in plans of several operations, and in many plans of one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import eager_copy, opened, padded, plain
from builders.generations import generated
from builders.prompts import visual_of
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleAttention,
    ScaleTokens,
    VisualLM,
    ZeroFFN,
)
from embedlens.interventions.program import choosing_by_score
from embedlens.interventions.program.steps import Choose
from embedlens.lens.runs.plan_protocol import Pass
from oracles.best_scored import attention_scores, picked
from oracles.torch_hooks import attached, entering, leaving
from tolerances import EQUAL, MOVED

OWN = Pass("forward", own=True)
LOOKED = "top(0.4, by=attention(last), layer=1, within=visual)"
EARLY = "bottom(0.3, by=attention(last), layer=0, within=visual)"
LATE = "bottom(0.6, by=attention(last), layer=2, within=visual)"
FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "internvl", "paligemma", "idefics3",
            "mistral3", "glm4v")  # fmt: skip


@pytest.fixture(scope="module")
def model(twin: Any) -> VisualLM:
    found: VisualLM = twin().model
    return found


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    """Prompts of different lengths, with one image and two, which end with a word."""
    prompts = {"middle": [0], "two": [1, 2], "short": [3]}
    images = [[tiny.image(seed) for seed in seeds] for seeds in prompts.values()]
    return model.encode(images, [tiny.PROMPTS[prompt] for prompt in prompts])


def choosers(plan: Plan, model: VisualLM, batch: Batch, during: Pass = OWN) -> int:
    return sum(isinstance(step, Choose) for step in plan.compile(model, batch, during).steps)


def found_by(model: VisualLM, batch: Batch, plan: Plan | None, tokens: str) -> Tensor:
    """Which tokens a run under a plan keeps, ``[sample, token]``."""
    run = model.run(batch, plan, capture="residual", layers=[0], tokens=tokens)
    found = torch.zeros(len(batch), batch.length, dtype=torch.bool)
    found[run.sample, run.position] = True
    return found


# What is in force in front, and what is done to the tokens that are chosen.
CASES: dict[str, tuple[Plan, Any]] = {
    "scaled in front": (
        Plan(ScaleTokens(factor=2.0, layers=0)),
        lambda t: [ZeroFFN(tokens=t, layers=2)],
    ),
    "blocked in the layer": (
        Plan(BlockAttention(queries="last", keys="row[0]", layers=1)),
        lambda t: [PruneTokens(tokens=t, layer=2)],
    ),
    "frozen by two operations": (
        Plan(),
        lambda t: [AblateAttention(tokens=t, layers="2-3"), ZeroFFN(tokens=t, layers="1-3")],
    ),
    "noise in front": (
        Plan(ReplaceTokens(by="noise", tokens="row[1]", layers=0, seed=1)),
        lambda t: [ReplaceTokens(tokens=t, by="zero", layers=2)],
    ),
}


@pytest.mark.parametrize(
    ("case", "attn"),
    [
        ("scaled in front", "sdpa"),
        *(
            pytest.param(case, attn, marks=pytest.mark.full)
            for case in CASES
            for attn in ("sdpa", "eager")
            if (case, attn) != ("scaled in front", "sdpa")
        ),
    ],
)
def test_beside_others_tokens_chosen_in_the_pass_are_those_chosen_before(
    twin: Any, batch: Batch, case: str, attn: str
) -> None:
    """Equal, bit for bit, to naming them: forward, answers, and every pass of a generation."""
    model = twin("llama", attn).model
    front, given = CASES[case]
    one, named = front + Plan(*given(LOOKED)), front + Plan(*given("mine"))
    mine = found_by(model, batch, front if len(front) else None, LOOKED)
    held = batch.with_tokens(mine=mine)
    assert choosers(one, model, batch) == 1
    logits = model.run(batch, one).logits
    assert torch.equal(logits, model.run(held, named).logits)
    assert float((logits - model.run(batch, front).logits).abs().max()) > MOVED
    if len(front):
        assert not torch.equal(mine, found_by(model, batch, None, LOOKED)), "front should matter"
    answers = ["a b"] * len(batch)
    scored, expected = model.score(batch, answers, one), model.score(held, answers, named)
    assert torch.equal(scored.logprob, expected.logprob)
    ids, written = generated(model, one, batch, 3)
    others, theirs = generated(model, named, held, 3)
    assert torch.equal(ids, others)
    assert all(torch.equal(a, b) for a, b in zip(written, theirs, strict=True))


@pytest.mark.full
def test_two_stages_of_pruning_are_one_pass(model: VisualLM, batch: Batch) -> None:
    """PyramidDrop: the second stage is scored where the first one is in force."""
    plan = Plan(PruneTokens(tokens=EARLY, layer=1), PruneTokens(tokens=LATE, layer=3))
    assert choosers(plan, model, batch) == 2
    first = found_by(model, batch, None, EARLY)
    held = batch.with_tokens(first=first)
    early = Plan(PruneTokens(tokens="first", layer=1, method="mask"))
    second = found_by(model, held, early, LATE)
    assert not torch.equal(second, found_by(model, batch, None, LATE))
    named = early + Plan(PruneTokens(tokens="second", layer=3, method="mask"))
    whole = held.with_tokens(second=second)
    assert torch.equal(model.run(batch, plan).logits, model.run(whole, named).logits)
    assert generated(model, plan, batch, 3)[0].equal(generated(model, named, whole, 3)[0])
    found, expected = plan.cost(model, batch).total, named.cost(model, whole).total
    assert (found["saved"], found["skipped"]) == (expected["saved"], expected["skipped"])
    assert 0 < found["spent"] - expected["spent"] < 0.05 * found["clean"]


@pytest.mark.parametrize("attn", ["sdpa", pytest.param("eager", marks=pytest.mark.full)])
def test_what_is_chosen_beside_others_equals_torch_hooks(
    twin: Any, batch: Batch, attn: str
) -> None:
    """Visual states doubled, then the tokens looked at most lose their FFN; nothing of ours."""
    made = twin("llama", attn)
    copied, visual = eager_copy(made.plain), visual_of(batch)
    layers = copied.model.language_model.layers
    doubled = entering(lambda states: torch.where(visual[..., None], 2 * states, states))
    last = torch.zeros_like(visual)
    last[:, -1] = True
    with attached([layers[0].register_forward_pre_hook(doubled, with_kwargs=True)]):
        scores = attention_scores(copied, batch.inputs, 1, last)
        gone = picked(scores, visual, 0.4, highest=True)
        zeroed = leaving(lambda added: torch.where(gone[..., None], 0.0, added))
        with attached([layers[2].mlp.register_forward_hook(zeroed)]), torch.no_grad():
            expected = copied(**batch.inputs, use_cache=False).logits[:, -1]
    plan = Plan(ScaleTokens(factor=2.0, layers=0), ZeroFFN(tokens=LOOKED, layers=2))
    found = [made.model.run(batch, plan).logits, made.model.run_many(batch, [None, plan])[1].logits]
    for logits in found:
        assert float((logits - expected).abs().max()) < EQUAL


@pytest.mark.quick("llava")
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_choose_beside_others_what_plain_models_look_at(name: str, attn: str) -> None:
    model, copied = opened(name, attn), plain(name)
    batch = padded(name, model)
    visual, last = visual_of(batch), torch.zeros(len(batch), batch.length, dtype=torch.bool)
    last[:, -1] = True
    layers = copied.get_submodule(model.anatomy.decoder).layers
    final = model.n_layers - 1
    look = f"top(0.4, by=attention(last), layer={final - 1}, within=visual)"
    doubled = entering(lambda states: torch.where(visual[..., None], 2 * states, states))
    with attached([layers[0].register_forward_pre_hook(doubled, with_kwargs=True)]):
        scores = attention_scores(copied, batch.inputs, final - 1, last)
    mine = picked(scores, visual, 0.4, highest=True)
    front = Plan(ScaleTokens(factor=2.0, layers=0))
    one, named = (front + Plan(PruneTokens(tokens=t, layer=final)) for t in (look, "mine"))
    assert choosers(one, model, batch) == 1
    expected = model.run(batch.with_tokens(mine=mine), named).logits
    assert torch.equal(model.run(batch, one).logits, expected)
    assert float((expected - model.run(batch, front).logits).abs().max()) > MOVED


# ---------------------------------------------------------------- where it is chosen before

BEFORE: dict[str, Plan] = {
    "weights are edited where they are read": Plan(
        ScaleAttention(queries="last", keys="row[0]", factor=0.5, layers=1),
        ZeroFFN(tokens=LOOKED, layers=2),
    ),
    "states are edited where they are read": Plan(
        ScaleTokens(factor=2.0, layers=1),
        ZeroFFN(tokens="top(3, by=norm, layer=1, within=visual)", layers=2),
    ),
    "both at one layer": Plan(
        ScaleTokens(tokens="top(3, by=norm, layer=1, within=visual)", factor=2.0, layers=1),
        ZeroFFN(tokens=LOOKED, layers=2),
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("case", BEFORE)
def test_what_could_be_another_score_is_chosen_before(
    model: VisualLM, batch: Batch, case: str
) -> None:
    plan = BEFORE[case]
    assert choosers(plan, model, batch) == 0
    assert choosers(Plan(plan.operations[-1]), model, batch) == 1


def test_whether_one_undoes_the_other_is_known_when_the_tokens_are(
    model: VisualLM, batch: Batch
) -> None:
    """Row 0 is left by all; a token chosen there would be zeroed for nobody."""
    rest = Plan(PruneTokens(tokens="image[0] & row[0]", layer=1))
    fine = rest + Plan(ZeroFFN(tokens="top(0.9, by=norm, layer=1, within=visual)", layers=2))
    assert choosers(fine, model, batch) == 1
    half = Plan(PruneTokens(tokens=LOOKED, layer=2))
    assert choosers(half + Plan(ZeroFFN(layers=3)), model, batch) == 1
    blocked = Plan(BlockAttention(queries="image[0]", keys="bos", layers=3))
    assert choosers(half + blocked, model, batch) == 1
    most = "top(0.9, by=norm, layer=1, within=visual)"
    assert choosers(Plan(PruneTokens(tokens=most, layer=2)) + Plan(
        ZeroFFN(tokens="image[0] & row[0]", layers=3)), model, batch) == 0  # fmt: skip
    risky = rest + Plan(ZeroFFN(tokens="top(1, by=norm, layer=1, within=visual)", layers=2))
    assert choosers(risky, model, batch) == 0
    lost = rest + Plan(
        ZeroFFN(tokens="top(1, by=norm, layer=1, within=image[0] & row[0])", layers=2)
    )
    with pytest.raises(InputError, match="would change nothing in layer 2"):
        model.run(batch, lost)


# ---------------------------------------------------------------- many plans


def many() -> list[Plan | None]:
    shares = [
        Plan(PruneTokens(tokens=f"bottom({s}, by=attention(last), layer={n - 1})", layer=n))
        for s in (0.25, 0.5)
        for n in (1, 3)
    ]
    states = [
        Plan(ZeroFFN(tokens="top(3, by=norm, layer=1)", layers="1-2")),
        Plan(ScaleTokens(tokens='top(0.3, by=cosine("red"), layer=2)', factor=0.5, layers=3)),
    ]
    return [None, *shares, *states]  # fmt: skip


@pytest.mark.full
def test_many_plans_read_their_scores_in_one_pass(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    known = choosing_by_score.scored_passes

    def counted(*args: Any, **kwargs: Any) -> Any:
        found = known(*args, **kwargs)
        passes.append(found.passes)
        return found

    monkeypatch.setattr(choosing_by_score, "scored_passes", counted)
    plans = many()
    runs = model.run_many(batch, plans)
    assert passes == [1]
    answers = ["a b"] * len(batch)
    scores = model.score_many(batch, answers, plans)
    assert passes == [1, 1]
    for plan, run, score in zip(plans, runs, scores, strict=True):
        assert float((run.logits - model.run(batch, plan).logits).abs().max()) < EQUAL
        expected = model.score(batch, answers, plan).logprob
        assert float((score.logprob - expected).abs().max()) < EQUAL
    passes.clear()
    # Other queries are another reading, and what is in force first is another pass.
    text = Plan(ZeroFFN(tokens="top(2, by=attention(text), layer=1)", layers=2))
    scaled = Plan(ScaleTokens(factor=2.0, layers=0), *plans[-2].operations)  # type: ignore[union-attr]
    model.run_many(batch, [*plans, text, scaled])
    assert sorted(passes) == [1, 2]


def test_a_plan_without_an_answer_is_named_and_keeps_no_other_from_its_own(
    model: VisualLM, batch: Batch
) -> None:
    wrong = Plan(ZeroFFN(tokens="top(17, by=norm, layer=1, within=image[0])", layers=2))
    with pytest.raises(InputError, match=r"plans\.2: .*has 16 tokens"):
        model.run_many(batch, [None, many()[1], wrong])
    broken = "top(1, by=attention(image[1]), layer=1)"
    with pytest.raises(InputError, match=r"plans\.0: .*has no token of image"):
        model.run_many(batch, [Plan(ZeroFFN(tokens=broken, layers=2)), *many()])


@pytest.mark.full
def test_a_rehearsed_remote_run_chooses_the_same_beside_others(
    model: VisualLM, batch: Batch
) -> None:
    plan = Plan(ScaleTokens(factor=2.0, layers=0), ZeroFFN(tokens=LOOKED, layers="2-3"))
    expected = model.run(batch, plan).logits
    assert torch.equal(model.run(batch, plan, remote="local").logits, expected)
    many_of = model.run_many(batch, [None, plan], remote="local")
    assert np.allclose(many_of[1].logits, expected, atol=EQUAL)
