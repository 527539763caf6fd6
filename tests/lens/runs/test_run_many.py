"""Many plans on one batch: the numbers of single runs, and the work of fewer passes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from builders.plans_that_share import ways
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InjectTokens,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    Run,
    ScaleTokens,
    TokenClasses,
    Unsupported,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
    paper,
)
from embedlens.interventions.program.site import Site
from embedlens.interventions.program.stacking import stacked
from embedlens.interventions.program.steps import Write, Zero
from embedlens.lens.runs import proof_record
from embedlens.lens.runs.forward import Output, run_request
from embedlens.lens.runs.many.conditions import compile_conditions
from embedlens.lens.runs.many.keys_of_sharing import LAYERS, STEPS, TOWERS
from embedlens.lens.runs.many.stacked_remote_passes import STACK, StackedPasses
from families.family import noise
from families.zoo import built
from tolerances import EQUAL, MOVED_A_LITTLE

FAMILIES = tuple(
    "llava qwen2_5_vl qwen3_vl internvl gemma3 idefics3 llava_next mistral3 molmo2 glm4v".split()
)
HALF = "random(like=dead, within=visual, seed=3)"
PLANS: dict[str, Plan | None] = {
    "untouched": None,
    "nothing": Plan(),
    "attention": Plan(AblateAttention(layers=1)),
    "ffn-dead": Plan(ZeroFFN(layers="0-1", tokens="dead")),
    "ffn-text": Plan(ZeroFFN(layers="last", tokens="text & ~bos")),
    "random": Plan(ZeroFFN(layers="0-1", tokens=HALF)),
    "both": Plan(AblateAttention(layers="last", tokens="dead"), ZeroFFN(tokens="alive")),
    "blocked": Plan(BlockAttention(queries="text", keys="visual", layers=1)),
    "blocked-dead": Plan(BlockAttention(queries="last", keys="dead", layers="0-1")),
    "zeroed-weights": Plan(
        BlockAttention(queries="text", keys="visual", layers=1, renormalise=False)
    ),
    "collapsed": Plan(
        BlockAttention(queries="last", keys="dead", layers=0, renormalise=False, collapse=True)
    ),
    "pruned": Plan(PruneTokens(tokens="dead", layer=1, method="mask")),
    "withdrawn": Plan(WithdrawTokens(tokens="visual", layer=1, method="mask")),
    "injected": Plan(InjectTokens(layer=1, norm="matched")),
    "injected-dead": Plan(InjectTokens(tokens="dead", layer=1, norm="rescaled")),
    "patched": Plan(PatchTokens(source=0, target=1, tokens="dead")),
    "patched-alive": Plan(PatchTokens(source=0, target=1, tokens="alive")),
    "patched-back": Plan(PatchTokens(source=1, target=0, tokens="dead"), ZeroFFN(layers=1)),
    "patched-ffn": Plan(PatchTokens(source=0, target=1, tokens="dead", site="ffn")),
    "class-mean": Plan(ReplaceTokens(by="class-mean", layers=1), ZeroFFN(layers=1, tokens="bos")),
    "noise": Plan(ReplaceTokens(by="noise", tokens="dead", seed=4)),
    "matched": Plan(ScaleTokens(norm_of="text", tokens="dead", layers="0-1")),
    "scaled": Plan(ScaleTokens(factor=0.5, layers=1)),
    "pruned-somehow": Plan(PruneTokens(tokens="dead", layer=1)),
    "paper": paper.skip([0, 1, 1.5], "dead"),
}
EAGER = ("llava", "qwen2_5_vl", "gemma3")


@functools.cache
def model_of(name: str, attn: str) -> VisualLM:
    family = built(name)
    model = copy.deepcopy(family.model)
    model.set_attn_implementation(attn)
    return VisualLM(model, family.processor)


@functools.cache
def batch_of(name: str, attn: str, samples: int) -> Batch:
    """One prompt, or two of different length with an image each; some tokens are called dead."""
    family, model = built(name), model_of(name, attn)
    prompts = [family.prompt, f"{family.prompt} red star ?"][:samples]
    batch = model.encode([noise(family.size, i) for i in range(samples)], prompts)
    dead = np.random.default_rng(5).random(len(batch.visual)) < 0.4
    dead[[0, -1]] = True
    none = np.zeros(len(dead), bool)
    return batch.with_classes(TokenClasses({"vit-sink": none, "llm-sink": none, "dead": dead}))


@functools.cache
def allowed(name: str, attn: str) -> tuple[Plan | None, ...]:
    """The plans that this model takes."""
    model, found = model_of(name, attn), []
    for plan in PLANS.values():
        try:
            model.run(batch_of(name, attn, 1), plan)
            found.append(plan)
        except Unsupported:
            continue
    return tuple(found)


def stacked_outputs(model: VisualLM, batch: Batch, plans: Sequence[Plan | None]) -> list[Output]:
    """The outputs of passes as a server makes them, made here: each of up to four plans."""
    request = run_request(model, batch, (), "all", "visual", "last", "all", "last", False)
    conditions = compile_conditions(model, batch, plans, request)
    found = {}
    for group, outputs in StackedPasses(model, request, 4).run(conditions):
        found |= dict(zip([condition.index for condition in group], outputs, strict=True))
    return [found[index] for index in range(len(plans))]


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    size = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= EQUAL * size


def assert_equal(found: Run, expected: Run, real: Any = slice(None)) -> None:
    near(found.logits[real], expected.logits[real])
    for site in ("residual", "attention", "ffn"):
        assert getattr(found, site).keys() == getattr(expected, site).keys()
        for layer, states in getattr(expected, site).items():
            near(getattr(found, site)[layer], states)
    assert torch.equal(found.sample, expected.sample)
    assert torch.equal(found.position, expected.position)


@pytest.mark.quick("llava", "gemma3")
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    ("name", "attn"), [(name, "sdpa") for name in FAMILIES] + [(name, "eager") for name in EAGER]
)
def test_every_plan_of_many_equals_its_own_run(name: str, attn: str, samples: int) -> None:
    model, batch, plans = (
        model_of(name, attn),
        batch_of(name, attn, samples),
        allowed(name, attn),
    )
    if samples > 1:
        plans = (*plans, Plan(ReplaceTokens(by="other", layers=1, tokens="bos")))
    assert len(plans) >= 13 or name in ("qwen3_vl",), len(plans)
    expected = [model.run(batch, plan) for plan in plans]
    moved = [
        float((run.logits - expected[0].logits).abs().max()) > MOVED_A_LITTLE for run in expected
    ]
    assert sum(moved) >= len(plans) - 3
    # What a single run returns beside its logits makes that every layer has to run.
    kept = {"capture": ("residual", "ffn"), "logits": "all"}
    captured = [model.run(batch, plan, **kept) for plan in plans]
    real = batch.inputs["attention_mask"].bool()
    for found, single in zip(model.run_many(batch, plans), expected, strict=True):
        assert_equal(found, single)
    for found, single in zip(model.run_many(batch, plans, **kept), captured, strict=True):
        assert_equal(found, single, real)
    found_ways = ways(model)
    assert {found_ways.get(name, {False}) == {True} for name in (LAYERS, TOWERS, STEPS)} == {True}


@pytest.mark.quick("llava", "qwen3_vl")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_score_of_many_equals_its_own_score(name: str) -> None:
    model, batch, answers = model_of(name, "sdpa"), batch_of(name, "sdpa", 2), ["red star", "blue"]
    plans = [
        *allowed(name, "sdpa"),
        Plan(ZeroFFN(layers=1, tokens="generated", phase="all")),
        Plan(BlockAttention(queries="generated", keys="visual", layers=1, phase="all")),
    ]
    expected = [model.score(batch, answers, plan, end=True) for plan in plans]
    many = model.score_many(batch, answers, plans, end=True)
    for found, single in zip(many, expected, strict=True):
        near(found.logprob, single.logprob)
        assert torch.equal(found.greedy, single.greedy)
        assert torch.equal(found.n_tokens, single.n_tokens)
    assert False not in set().union(*ways(model).values())


# Rows that went through the tower and through each layer.
COUNTED = [0] * (1 + tiny.LAYERS)


class Counting(torch.nn.Module):
    """A module that counts its rows: hooks, and counts kept on it, would keep it from sharing."""

    def __init__(self, inner: torch.nn.Module, place: int) -> None:
        super().__init__()
        self.inner, self.place = inner, place

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        COUNTED[self.place] += len(states)
        return self.inner(states)


@pytest.fixture
def fresh() -> VisualLM:
    """A model whose tower and layers count their rows in ``COUNTED``."""
    built = tiny.build()
    tower = built.model.model.vision_tower
    tower.pre_layrnorm = Counting(tower.pre_layrnorm, 0)
    for place, layer in enumerate(built.model.model.language_model.layers, 1):
        layer.mlp.act_fn = Counting(layer.mlp.act_fn, place)
    return VisualLM(built.model, built.processor)


def ran(model: VisualLM, plans: list[Plan | None], **many: Any) -> list[int]:
    """Rows that went through the tower and through each layer."""
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    COUNTED[:] = [0] * len(COUNTED)
    model.run_many(batch, plans, **many)
    return list(COUNTED)


SWEEP = [Plan(ZeroFFN(layers=layer)) for layer in range(tiny.LAYERS)]


def test_the_tower_runs_once_and_layers_only_where_a_plan_differs(fresh: VisualLM) -> None:
    """An FFN that is zeroed is not computed either, nor what is left behind the last one."""
    ran(fresh, [None, *SWEEP])
    assert ran(fresh, [None, *SWEEP]) == [1, 1, 2, 3, 4]


def test_what_was_captured_before_plans_part_is_not_computed_again(fresh: VisualLM) -> None:
    kept: dict[str, Any] = {"capture": "residual", "layers": [1]}
    ran(fresh, [None, *SWEEP], **kept)
    assert ran(fresh, [None, *SWEEP], **kept) == [1, 1, 2, 3, 4]


def test_a_single_run_shares_nothing(fresh: VisualLM) -> None:
    ran(fresh, [SWEEP[2]])  # the first time it is tried whether its FFN takes rows one by one
    assert ran(fresh, [SWEEP[2]]) == [1, 1, 1, 1, 1]
    assert ran(fresh, [None]) == [1, 1, 1, 1, 1]


def test_a_plan_that_removes_rows_has_its_own_pass_and_the_tower_of_all(fresh: VisualLM) -> None:
    removing = Plan(PruneTokens(tokens="box[0:2, 0:2]", method="remove"))
    plans = [SWEEP[0], removing, SWEEP[1]]
    ran(fresh, plans)
    assert ran(fresh, plans)[0] == 1
    batch = fresh.encode(tiny.image(0), tiny.PROMPTS["middle"])
    for found, plan in zip(fresh.run_many(batch, plans), plans, strict=True):
        assert_equal(found, fresh.run(batch, plan))


def test_what_does_not_come_out_equal_is_not_stacked(
    fresh: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder whose arguments are repeated wrongly, and one that cannot be run like that."""

    def swapped(model: Any, step: dict[str, Any]) -> None:
        site = model.get(step["path"])
        args, kwargs = site.inputs
        embeds = kwargs["inputs_embeds"].repeat(step["copies"], 1, 1)
        site.inputs = (args, {**kwargs, "inputs_embeds": embeds.flip(1)})

    def failing(model: Any, step: dict[str, Any]) -> None:
        raise RuntimeError("does not fit")

    batch = fresh.encode(tiny.image(0), tiny.PROMPTS["middle"])
    expected = [fresh.run(batch, plan) for plan in SWEEP]
    for broken in (swapped, failing):
        proof_record._PROVEN.pop(fresh.hf, None)
        monkeypatch.setattr("embedlens.lens.runs.many.stacked_remote_passes.repeat_batch", broken)
        for found, single in zip(stacked_outputs(fresh, batch, SWEEP), expected, strict=True):
            near(found.logits[:, -1], single.logits)
        assert ways(fresh)[STACK] == {False}


def test_layers_that_share_more_than_the_stream_all_run() -> None:
    """Here later layers read keys of earlier ones, which are not there if those did not run."""
    name = "gemma4"
    model, batch = model_of(name, "sdpa"), batch_of(name, "sdpa", 1)
    plans = [None, *(Plan(ZeroFFN(layers=layer)) for layer in range(model.n_layers))]
    for found, plan in zip(model.run_many(batch, plans), plans, strict=True):
        assert_equal(found, model.run(batch, plan))
    assert ways(model)[TOWERS] == {True}
    # That a layer writes into what it is given was seen before anything was tried.
    assert LAYERS not in ways(model)


@pytest.mark.parametrize("name", ["chameleon", "phi4_multimodal", "granite4_vision"])
def test_a_decoder_that_takes_the_image_itself_is_not_stacked(name: str) -> None:
    model, batch = model_of(name, "sdpa"), batch_of(name, "sdpa", 2)
    plans = [Plan(ZeroFFN(layers=layer, tokens="dead")) for layer in range(model.n_layers)] * 2
    outputs = stacked_outputs(model, batch, plans)
    many = model.run_many(batch, plans)
    for found, output, plan in zip(many, outputs, plans, strict=True):
        single = model.run(batch, plan)
        assert_equal(found, single)
        near(output.logits[:, -1], single.logits)
    assert ways(model)[STACK] == {False}


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3"])
def test_plans_share_a_remote_pass(name: str) -> None:
    model, batch = model_of(name, "eager"), batch_of(name, "eager", 2)
    plans = allowed(name, "eager")
    many = model.run_many(batch, plans, capture="residual", at_once=6, remote="local")
    for found, plan in zip(many, plans, strict=True):
        assert_equal(found, model.run(batch, plan, capture="residual"))
    assert ways(model)[STACK] == {True}
    assert False not in set().union(*ways(model).values())


def test_a_refusal_names_the_sample_of_the_batch(fresh: VisualLM) -> None:
    batch = fresh.encode([tiny.image(0), tiny.image(1)], ["<image> a", "<image> a red star ?"])
    blind = Plan(BlockAttention(queries="visual", keys="visual | bos", layers=1))
    assert len(fresh.run_many(batch, [*SWEEP, SWEEP[0]])) == 5
    with pytest.raises(InputError, match=r"of sample 0 is left without any key") as single:
        fresh.run(batch, blind)
    with pytest.raises(InputError) as several:
        fresh.run_many(batch, [*SWEEP, blind])
    assert str(several.value) == str(single.value)


def test_progress_counts_plans_and_results_keep_their_order(fresh: VisualLM) -> None:
    batch = fresh.encode(tiny.image(0), tiny.PROMPTS["middle"])
    told: list[tuple[int, int]] = []
    plans = [SWEEP[3], None, SWEEP[0], SWEEP[2], Plan()]
    fresh.run_many(batch, plans, progress=lambda _, done, total: told.append((done, total)))
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]
    assert fresh.run_many(batch, []) == []
    with pytest.raises(InputError, match="at least one condition"):
        fresh.run_many(batch, plans, at_once=0)


def test_a_plan_that_cannot_be_carried_out_is_named(fresh: VisualLM) -> None:
    batch = fresh.encode(tiny.image(0), "<image> a")
    wrong = Plan(ZeroFFN(layers=99))
    with pytest.raises(InputError, match=r"^plans\.1: no layer 99"):
        fresh.run_many(batch, [None, wrong])
    with pytest.raises(InputError, match=r"^no layer 99"):
        fresh.run(batch, wrong)


@dataclass(frozen=True, kw_only=True, eq=False)
class Spiced(Zero):
    """A step that does not say how one of its tensors goes with the rows."""

    spice: torch.Tensor


def test_alike_steps_become_one_and_unknown_ones_are_refused() -> None:
    rows: Any = {"rows": torch.tensor([0, 1]), "columns": torch.tensor([4, 5]), "when": "prefill"}
    site = Site(1, "ffn")
    zero, write = Zero(site=site, **rows), Write(site=site, slot="states1", **rows)
    made: list[Any] = stacked([[zero], [zero, write], [write, zero]], 2)
    assert [type(step) for step in made] == [Zero, Write, Write, Zero]
    assert made[0].rows.tolist() == [0, 1, 2, 3]
    assert made[0].columns.tolist() == [4, 5, 4, 5]
    assert made[2].rows.tolist() == made[3].rows.tolist() == [4, 5]
    assert made[1].slot != made[2].slot
    elsewhere = replace(zero, site=Site(2, "ffn"))
    made = stacked([[zero, elsewhere], [elsewhere, zero]], 2)
    assert [step.site.layer for step in made] == [1, 2, 1]
    with pytest.raises(Unsupported, match="'spice' goes with the rows"):
        stacked([[Spiced(site=site, spice=torch.ones(2), **rows)]], 2)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_mask_made_for_one_layer_serves_only_layers_that_receive_the_same(
    twin: Callable[..., Any], attn: str
) -> None:
    """Another operation changes the mask of one layer on the way."""
    model = twin("llama", attn).model
    batch = model.encode(tiny.image(0), tiny.PROMPTS["middle"])
    everywhere = BlockAttention(queries="last", keys="visual")
    once = BlockAttention(queries="text & ~bos", keys="bos", layers=2)
    one, other = (model.run(batch, Plan(*ops)) for ops in ((once, everywhere), (everywhere, once)))
    near(one.logits, other.logits)
    assert (one.logits - model.run(batch, Plan(everywhere)).logits).abs().max() > MOVED_A_LITTLE
