"""Plans on a real language model: against torch hooks on a plain copy, and by what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.prompts import visual_of
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    Example,
    InjectTokens,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
    WithdrawTokens,
    ZeroFFN,
    ablation,
)
from embedlens.analyses.select_rows import one
from oracles.dropped_tokens import ByHand
from oracles.whole_sequences import (
    Prompts,
    changing,
    edited,
    mean,
    patched,
    times,
    unseen,
    zero,
)
from real.planted_words import CAPITALS, COUNTRIES, QUESTION, picture, showing
from tolerances import LARGE, MOVED, RECOMPUTED

LONGER = f"{QUESTION} light? No,"


@pytest.fixture(scope="module")
def batch(countries: Any) -> Batch:
    """Two prompts of different length, so that one is padded."""
    images = [picture([0, 0, 0, 1, 1, 1, 2, 2, 2]), picture([3, 4, 5, 6, 7, 8, 0, 1, 2])]
    return countries.model.encode(images, [QUESTION, LONGER])


def sublayers(plain: Any, part: str, layers: range, at: Prompts) -> Any:
    decoder = plain.model.language_model.layers
    return edited([changing(getattr(decoder[i], part), zero(at), output=True) for i in layers])


def entering(plain: Any, layers: range, made: Callable[[Tensor], Tensor]) -> Any:
    return edited([changing(plain.model.language_model.layers[i], made) for i in layers])


def hidden(plain: Any, layers: range, queries: Prompts, keys: Tensor) -> Any:
    mixers = [plain.model.language_model.layers[i].self_attn for i in layers]
    return unseen(mixers, queries, keys)


# Attention weights are there to be hidden under the eager kernel alone.
EAGER = "no visual key in the middle"

# What is declared, and the same by hooks: of the plain model and the mask of visual tokens.
PLANS: dict[str, tuple[Plan, Callable[[Any, Tensor], Any]]] = {
    "no attention in some layers": (
        Plan(AblateAttention(layers="5-9")),
        lambda plain, at: sublayers(plain, "self_attn", range(5, 10), Prompts(at)),
    ),
    "no FFN in the first layers, which make the sinks": (
        Plan(ZeroFFN(layers="0-3")),
        lambda plain, at: sublayers(plain, "mlp", range(4), Prompts(at)),
    ),
    "no FFN in any layer": (
        Plan(ZeroFFN(layers="all")),
        lambda plain, at: sublayers(plain, "mlp", range(30), Prompts(at)),
    ),
    "states of layer 4 in layer 20": (
        Plan(PatchTokens(source=4, target=20)),
        lambda plain, at: edited(patched(plain.model.language_model, 4, 20, Prompts(at))),
    ),
    "the mean visual token": (
        Plan(ReplaceTokens(by="mean", layers=2)),
        lambda plain, at: entering(plain, range(2, 3), mean(Prompts(at), at)),
    ),
    "a tenth of the norm": (
        Plan(ScaleTokens(factor=0.1, layers=0)),
        lambda plain, at: entering(plain, range(1), times(Prompts(at), 0.1)),
    ),
    EAGER: (
        Plan(BlockAttention(queries="text", keys="visual", layers="10-20")),
        lambda plain, at: hidden(plain, range(10, 21), Prompts(~at), at),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_equals_torch_hooks(countries: Any, batch: Batch, name: str) -> None:
    """Without any FFN two kernels of attention drift apart by 1e-4 over the layers."""
    plan, by_hooks = PLANS[name]
    plain = countries.plain if name == EAGER else countries.alike
    model, visual = countries.model, visual_of(batch)
    ours = model.run(batch, plan, logits="all").logits
    with torch.no_grad():
        clean = plain(**batch.inputs, use_cache=False).logits
        with by_hooks(plain, visual):
            expected = plain(**batch.inputs, use_cache=False).logits
    keep = batch.inputs["attention_mask"].bool()
    size = float(expected[keep].abs().max())
    assert float((ours - expected)[keep].abs().max()) < LARGE * size
    assert float((clean - expected)[keep].abs().max()) > MOVED * size


@pytest.mark.parametrize("layer", [0, 8])
@pytest.mark.parametrize("what", ["pruned", "late", "withdrawn"])
def test_rows_that_are_dropped_equal_layers_called_by_hand(
    countries: Any, layer: int, what: str
) -> None:
    """Of one sample, so that nothing is padded."""
    model, plain = countries.model, countries.plain
    one_image = model.encode(picture([3, 4, 5, 6, 7, 8, 0, 1, 2]), QUESTION)
    visual = visual_of(one_image)[0]
    by_hand = ByHand(plain, plain.model.language_model, one_image.inputs)
    kept = torch.arange(one_image.length)
    if what == "late":
        plan = Plan(InjectTokens(layer=layer + 1))
        states = by_hand.late(visual, layer + 1)
    elif what == "withdrawn":
        plan = Plan(WithdrawTokens(layer=layer + 1))
        states, kept = by_hand.without(visual, layer + 1)
    else:
        half = visual & (visual.cumsum(0) <= 3)
        plan = Plan(PruneTokens(tokens="box[0:1, 0:3]", layer=layer))
        states, kept = by_hand.without(half, layer)
    expected = by_hand.logits(states)[0, -1]
    ours = model.run(one_image, plan).logits[0]
    size = float(expected.abs().max())
    assert kept[-1] == one_image.length - 1
    assert float((ours - expected).abs().max()) < LARGE * size
    assert float((by_hand.clean[0, -1] - expected).abs().max()) > MOVED * size


def written(plain: Any, batch: Batch, count: int, within: Callable[[], Any]) -> list[list[int]]:
    """Greedy ids by recomputing the whole sequence at every step, without a cache."""
    inputs = dict(batch.inputs)
    for _ in range(count):
        with torch.no_grad(), within():
            logits = plain(**inputs, use_cache=False).logits[:, -1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], logits.argmax(-1)[:, None]], 1)
        more = torch.ones_like(inputs["attention_mask"][:, :1])
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], more], 1)
    return [row.tolist() for row in inputs["input_ids"][:, batch.length :]]


@pytest.mark.parametrize("name", ["", "no attention in some layers", EAGER])
def test_generation_equals_the_whole_sequence_at_every_step(
    countries: Any, batch: Batch, name: str
) -> None:
    plan, by_hooks = PLANS[name] if name else (None, lambda *_: edited([]))
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    ours = countries.model.generate_ids(batch, plan, **options)
    visual = visual_of(batch)
    expected = written(countries.plain, batch, 4, lambda: by_hooks(countries.plain, visual))
    assert ours == expected


def test_scores_equal_those_of_transformers(countries: Any, batch: Batch) -> None:
    model, plain = countries.model, countries.plain
    answers = [[7042, 30], [5023, 1192]]
    inputs = dict(batch.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor(answers)], 1)
    ones = torch.ones(2, 2, dtype=torch.long)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], ones], 1)
    with torch.no_grad():
        logprobs = plain(**inputs).logits[:, -3:-1].log_softmax(-1)
    expected = logprobs.gather(2, torch.tensor(answers)[..., None])[..., 0].sum(1)
    found = model.score(batch, answers)
    torch.testing.assert_close(found.logprob, expected, rtol=LARGE, atol=RECOMPUTED)
    told = plain.generate(**batch.inputs, max_new_tokens=5, do_sample=False)[:, batch.length :]
    ids = model.generate_ids(batch, max_new_tokens=5, do_sample=False)
    for row, own in zip(told.tolist(), ids, strict=True):
        assert own == row[: len(own)]
        assert len(own) == 5 or row[len(own)] == model.tokenizer.eos_token_id


def test_many_plans_at_once_give_the_numbers_of_each_alone(countries: Any, batch: Batch) -> None:
    plans = [None, *(plan for plan, _ in PLANS.values())]
    together = countries.model.run_many(batch, plans)
    for plan, run in zip(plans, together, strict=True):
        alone = countries.model.run(batch, plan).logits
        size = float(alone.abs().max())
        assert float((alone - run.logits).abs().max()) < LARGE * size


# ---------------------------------------------------------------- what follows from a plan


def test_the_answer_follows_the_planted_word(countries: Any) -> None:
    model = countries.model
    batch = model.encode(showing(*range(len(COUNTRIES))), [QUESTION] * len(COUNTRIES))
    said = model.generate(batch, max_new_tokens=1, do_sample=False)
    assert said == [CAPITALS[name] for name in COUNTRIES]


def test_the_answer_follows_a_word_that_is_carried_over(countries: Any) -> None:
    """Carried at the entry it decides; carried at the end of the model it comes too late."""
    model = countries.model
    france, italy = (model.encode(image, QUESTION) for image in showing(0, 1))

    def answer(layer: int) -> str:
        plan = Plan(PatchTokens(source=layer, target=layer, states="other")).given(other=italy)
        return model.generate(france, plan, max_new_tokens=1, do_sample=False)[0]

    assert answer(0) == "Rome"
    assert answer(model.n_layers - 1) == "Paris"
    said = model.generate(
        france, Plan(ReplaceTokens(by="word", word=" Japan")), max_new_tokens=1, do_sample=False
    )
    assert said == ["Tokyo"]


def test_an_ablation_finds_what_the_image_is_worth(countries: Any) -> None:
    """Every answer comes from the image, and is ready before the last layer."""
    examples = [Example(image, QUESTION, task="capital") for image in showing(*range(4))]
    result = ablation(
        countries.model, examples, operations=["ffn"], scopes=["single"], max_new_tokens=1
    )
    assert result.meta["answers"] == [*CAPITALS.values()][:4]
    rows = result.frame.query("task == 'all'")
    assert one(rows, scope="clean")["accuracy"] == 1
    assert one(rows, scope="wrong image")["accuracy"] == 0
    assert one(rows, scope="single", layer=29)["accuracy"] == 1
