"""Operations on heads and on attention weights, against weights edited by hand behind the softmax.

Oracles: the softmax of an eager copy is swapped, whole sequences are recomputed without a cache,
and what single heads gathered is made zero by torch hooks in front of the output projection.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from builders.copies import eager_copy, opened, padded, plain
from builders.generations import generated
from builders.prompts import encode
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    Plan,
    ReplaceTokens,
    ScaleAttention,
    Unsupported,
)
from embedlens.interventions.program.steps import ScaleWeights
from families.zoo import READABLE, built
from oracles.eager_weights import scaled, softmax_changed
from oracles.knockouts import longer, mixers_of
from oracles.selected_tokens import BOS, EVERY, LAST, TEXT, VISUAL, Tokens, pairs
from oracles.torch_hooks import attached
from tolerances import ACCUMULATED, EQUAL, MOVED, MOVED_A_LITTLE

LAYERS = (1, 2)
WORDS = Tokens("text & ~bos", lambda i, m: TEXT.prompt(i, m) & ~BOS.prompt(i, m), generated=True)
# By name: fields of the operation, whose pairs are (queries, keys, takers, factor, heads).
CASES: dict[str, tuple[type, dict[str, Any], tuple[Tokens, Tokens, Tokens | None]]] = {
    "block": (BlockAttention, {"heads": [0, 3]}, (TEXT, VISUAL, None)),
    "block-zeroed": (BlockAttention, {"heads": "1-2", "renormalise": False}, (TEXT, VISUAL, None)),
    "scale": (ScaleAttention, {"factor": 0.25}, (TEXT, VISUAL, None)),
    "scale-up": (ScaleAttention, {"factor": 3.0, "heads": 2}, (LAST, VISUAL, None)),
    "give": (ScaleAttention, {"factor": 0.4, "heads": "0,2"}, (TEXT, VISUAL, BOS)),
    "give-all": (ScaleAttention, {"factor": 0.0}, (WORDS, VISUAL, WORDS)),
}


@functools.cache
def eager(attn: str, twin: Any) -> Any:
    return eager_copy(twin("llama", attn).plain)


def operation(case: str, **more: Any) -> Any:
    kind, fields, (queries, keys, takers) = CASES[case]
    given = {} if takers is None else {"give_to": takers.text}
    names = {"queries": queries.text, "keys": keys.text, **given}
    return kind(**names, layers=list(LAYERS), **fields, **more)


def edit(case: str, batch: Batch, new: int = 0, phase: str = "prefill") -> Any:
    """The same, of weights ``[sample, head, query, key]``, row by row."""
    kind, fields, (queries, keys, takers) = CASES[case]
    meant = pairs(queries, keys, batch, new, phase)
    # Nobody sees what is behind it.
    meant &= torch.ones(meant.shape[-2:], dtype=torch.bool).tril()
    getting = None if takers is None else pairs(EVERY, takers, batch, new, "all").any(1)
    heads = {"0,2": [0, 2], "1-2": [1, 2], 2: [2]}.get(
        str(fields.get("heads")), fields.get("heads")
    )
    heads = [heads] if isinstance(heads, int) else heads
    renormalise = kind is BlockAttention and fields.get("renormalise", True)
    return scaled(meant, fields.get("factor", 0.0), getting, heads, renormalise=renormalise)


def recomputed(copied: Any, change: Any, inputs: Any) -> Tensor:
    mixers = mixers_of(copied, copied.model.language_model.layers)
    with softmax_changed({mixers[layer]: change for layer in LAYERS}):
        logits: Tensor = copied(**inputs, use_cache=False).logits
    return logits


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attn", ["sdpa", pytest.param("eager", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", [pytest.param("middle", marks=pytest.mark.full), "ragged"])
def test_weights_of_heads_equal_weights_edited_by_hand(
    twin: Any, name: str, attn: str, case: str
) -> None:
    model, copied = twin("llama", attn).model, eager(attn, twin)
    batch = encode(model, name)
    real = batch.inputs["attention_mask"].bool()
    expected = recomputed(copied, edit(case, batch), batch.inputs)
    clean = recomputed(copied, lambda weights: weights, batch.inputs)
    found = model.run(batch, Plan(operation(case)), logits="all").logits
    assert float((found - expected)[real].abs().max()) < EQUAL
    assert float((clean - expected)[real].abs().max()) > MOVED


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("attn", "phase"),
    [
        ("sdpa", "all"),
        *(
            pytest.param(attn, phase, marks=pytest.mark.full)
            for attn, phase in (("sdpa", "decode"), ("eager", "all"), ("eager", "prefill"))
        ),
    ],
)
def test_generations_equal_whole_sequences_recomputed(
    twin: Any, attn: str, phase: str, case: str
) -> None:
    model, copied = twin("llama", attn).model, eager(attn, twin)
    batch, new = encode(model, "ragged"), 3
    ids, logits = generated(model, Plan(operation(case, phase=phase)), batch, new)
    inputs = longer("llava", batch.inputs, ids)
    expected = recomputed(copied, edit(case, batch, new, phase), inputs)
    clean = recomputed(copied, lambda weights: weights, inputs)
    for step, found in enumerate(logits):
        position = batch.length - 1 + step
        assert float((found - expected[:, position]).abs().max()) < EQUAL, step
    assert float((clean - expected)[:, batch.length - 1 :].abs().max()) > MOVED


@contextmanager
def zeroed_heads(
    projections: list[Any], heads: list[int], where: Tensor, count: int
) -> Iterator[None]:
    """Torch hooks that make what some heads gathered zero at ``where`` [sample, token]."""

    def hook(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (states,) = args
        made = states.clone().reshape(*where.shape[:1], -1, count, states.shape[-1] // count)
        # A later pass is over the tokens behind the prompt.
        mask = where if made.shape[1] == where.shape[1] else torch.zeros(made.shape[:2]).bool()
        for head in heads:
            made[:, :, head][mask] = 0
        return (made.reshape(states.shape),)

    with attached([module.register_forward_pre_hook(hook) for module in projections]):
        yield


@pytest.mark.parametrize("attn", ["sdpa", pytest.param("eager", marks=pytest.mark.full)])
def test_ablated_heads_equal_hooks(twin: Any, attn: str) -> None:
    made = twin("llama", attn)
    model, copied, batch = made.model, made.plain, encode(made.model, "ragged")
    where = VISUAL.prompt(batch.inputs["input_ids"], batch.inputs["attention_mask"])
    layers = copied.model.language_model.layers
    projections = [layers[layer].self_attn.o_proj for layer in LAYERS]
    plan = Plan(AblateAttention(layers=list(LAYERS), heads="1,3"))
    with torch.no_grad():
        clean = copied(**batch.inputs).logits
        with zeroed_heads(projections, [1, 3], where, 4):
            expected = copied(**batch.inputs).logits
            settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
            settings |= {"return_dict_in_generate": True, "output_logits": True}
            wanted = copied.generate(**batch.inputs, **settings, suppress_tokens=[tiny.IMAGE_ID])
    real = batch.inputs["attention_mask"].bool()
    found = model.run(batch, plan, logits="all").logits
    assert float((found - expected)[real].abs().max()) < EQUAL
    assert float((clean - expected)[real].abs().max()) > MOVED
    ids, logits = generated(model, plan, batch, 3)
    assert torch.equal(ids, wanted.sequences[:, -3:])
    for mine, theirs in zip(logits, wanted.logits, strict=True):
        assert float((mine - theirs).abs().max()) < EQUAL


def test_all_heads_ablated_is_attention_ablated_where_no_bias_is_left(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    by_head, whole = (
        model.run(batch, Plan(AblateAttention(layers=1, heads=heads))).logits
        for heads in ("0-3", None)
    )
    torch.testing.assert_close(by_head, whole, atol=EQUAL, rtol=EQUAL)


# ---------------------------------------------------------------- families

NOWHERE = ("gemma3n", "glm5_next", "inkling_mm_model", "mistral_large4")
EAGER_ONLY = ("fast_vlm", "paligemma2")
PADDED = ("qwen2_5_vl", "gemma3", "paligemma", "llama4")
PROJECTIONS = ("o_proj", "out_proj", "dense")
FAMILY = [n for n in READABLE if n not in NOWHERE]


def check_family(name: str, batch: Batch, plan: Plan, edited: AbstractContextManager[Any]) -> None:
    model, copied = opened(name, "eager" if name in EAGER_ONLY else "sdpa"), plain(name)
    real = batch.inputs["attention_mask"].bool()
    with torch.no_grad():
        clean = copied(**batch.inputs).logits
        with edited:
            expected = copied(**batch.inputs).logits
    found = model.run(batch, plan, logits="all").logits
    finite = clean[real].isfinite()
    spread = max(1.0, float(clean[real][finite].std()))
    # The oracle edits the weights of eager attention; the model runs the kernel it has.
    assert float((found - expected)[real][finite].abs().max()) < 2 * ACCUMULATED * spread
    assert float((clean - expected)[real][finite].abs().max()) > MOVED_A_LITTLE


def family_case(name: str, batch: Batch, case: str) -> tuple[Plan, AbstractContextManager[Any]]:
    """A plan for all layers that can have it, and its oracle."""
    model, copied = opened(name, "eager" if name in EAGER_ONLY else "sdpa"), plain(name)
    layers = [i for i in range(model.n_layers) if f"knockout:{i}" not in model.anatomy.refusals]
    mixers = mixers_of(copied, copied.get_submodule(model.anatomy.decoder).layers)
    seen = model.anatomy.visual_mask(batch.inputs)
    text = batch.inputs["attention_mask"].bool() & ~seen
    if case == "ablate":
        count = {"step3p7": (4, 8, 4, 8)}.get(name, (4,) * model.n_layers)
        one = [i for i in layers if count[i] == 4]
        found = [_projection(mixers[layer]) for layer in one]
        plan = Plan(AblateAttention(layers=one, heads="1-2", tokens="visual"))
        return plan, zeroed_heads(found, [1, 2], seen, 4)
    meant = text[:, :, None] & seen[:, None, :]
    pair = {"queries": "text", "keys": "visual", "layers": layers, "heads": "0,3"}
    if case == "block":
        change = scaled(meant, 0.0, None, [0, 3], renormalise=True)
        return Plan(BlockAttention(**pair)), softmax_changed({mixers[i]: change for i in layers})
    change = scaled(meant, 0.5, text, [0, 3])
    scaling = ScaleAttention(factor=0.5, give_to="text", **pair)
    return Plan(scaling), softmax_changed({mixers[i]: change for i in layers})


def _projection(mixer: Any) -> Any:
    return next(part for n in PROJECTIONS if (part := getattr(mixer, n, None)) is not None)


@pytest.mark.quick("gemma3", "llama4")
@pytest.mark.parametrize("case", ["ablate", "block", "scale"])
@pytest.mark.parametrize("name", FAMILY)
def test_heads_of_every_family_equal_hooks(name: str, case: str) -> None:
    model = opened(name, "eager" if name in EAGER_ONLY else "sdpa")
    batch = model.batch(built(name).inputs)
    check_family(name, batch, *family_case(name, batch, case))


@pytest.mark.full
@pytest.mark.parametrize("case", ["ablate", "block", "scale"])
@pytest.mark.parametrize("name", PADDED)
def test_heads_in_padded_batches_equal_hooks(name: str, case: str) -> None:
    batch = padded(name, opened(name, "sdpa"))
    check_family(name, batch, *family_case(name, batch, case))


# ---------------------------------------------------------------- nothing, turns, refusals


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_a_factor_of_one_changes_no_bit(twin: Any, attn: str) -> None:
    model = twin("llama", attn).model
    batch = encode(model, "ragged")
    plan = Plan(ScaleAttention(queries="text", keys="visual", factor=1, give_to="bos"))
    clean, found = (model.run(batch, p, logits="all").logits for p in (None, plan))
    assert torch.equal(found, clean)


def test_weights_are_changed_in_turn(twin: Any) -> None:
    """Scaled, then taken away, then scaled again: each goes on from what was left."""
    model, copied = twin().model, eager("sdpa", twin)
    batch = encode(model, "ragged")
    cases = ("scale", "block-zeroed", "give")
    edits = [edit(case, batch) for case in cases]
    expected = recomputed(
        copied, lambda w: functools.reduce(lambda now, change: change(now), edits, w), batch.inputs
    )
    plan = Plan(*map(operation, cases))
    found = model.run(batch, plan, logits="all").logits
    real = batch.inputs["attention_mask"].bool()
    assert float((found - expected)[real].abs().max()) < EQUAL


def test_many_plans_on_heads_equal_their_own_runs(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    plans = [
        *(Plan(operation(case)) for case in ("block", "block-zeroed", "give")),
        *(Plan(AblateAttention(layers=2, heads=head)) for head in (1, 2)),
    ]
    asked = {"capture": ("attention_weights", "head_outputs"), "layers": [2], "queries": "all"}
    for plan, many in zip(plans, model.run_many(batch, plans, **asked), strict=True):
        alone = model.run(batch, plan, **asked)
        torch.testing.assert_close(many.logits, alone.logits, atol=EQUAL, rtol=EQUAL)
        for kind in asked["capture"]:
            mine, theirs = getattr(many, kind)[2], getattr(alone, kind)[2]
            torch.testing.assert_close(mine, theirs, atol=EQUAL, rtol=EQUAL)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(AblateAttention(heads=4)), "no head 4: layer 0 has heads 0 to 3"),
        (
            Plan(BlockAttention(queries="text", keys="visual", heads="2-9", layers=1)),
            "no head 9: layer 1",
        ),
        (
            Plan(ScaleAttention(queries="text", keys="visual", factor=0.5, give_to="patch")),
            "among those that are scaled",
        ),
        (
            Plan(ScaleAttention(queries="bos", keys="visual", factor=0.5)),
            "nothing is scaled",
        ),
        (
            Plan(ScaleAttention(queries="visual", keys="bos", factor=0.5, give_to="last")),
            "attends to none of the tokens",
        ),
        (
            Plan(BlockAttention(queries="text", keys="text | visual", heads=1)),
            "left without any key",
        ),
        (
            Plan(AblateAttention(heads=1), AblateAttention()),
            "would change nothing",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(twin: Any, plan: Plan, message: str) -> None:
    model = twin().model
    with pytest.raises(InputError, match=message):
        model.run(encode(model, "middle"), plan)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": -1}, "factor"),
        ({}, "factor: is missing"),
        ({"factor": 2, "give_to": "bos"}, "frees nothing"),
        ({"factor": 0.5, "heads": "all"}, "heads 'all'"),
        ({"factor": 0.5, "heads": []}, "no head given"),
        ({"factor": 0.5, "heads": "3-1"}, "runs backwards"),
        ({"factor": 0.5, "heads": True}, "heads"),
    ],
)
def test_what_is_no_scaling_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScaleAttention(queries="text", keys="visual", **fields)


@pytest.mark.full
def test_heads_of_layers_without_any_are_refused_by_name() -> None:
    model = opened("qwen3_5", "sdpa")
    batch = model.batch(built("qwen3_5").inputs)
    with pytest.raises(Unsupported, match="layer 0 mixes tokens by linear attention"):
        model.run(batch, Plan(AblateAttention(heads=0)))


@pytest.mark.parametrize("case", CASES)
def test_plans_on_heads_come_back_from_text(case: str) -> None:
    plan = Plan(operation(case))
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert Plan.from_json(plan.to_json()) == plan


def test_a_plan_in_words_names_heads_and_who_gets_what(twin: Any) -> None:
    model = twin().model
    words = Plan(operation("give"), operation("block")).describe(model, encode(model, "middle"))
    assert "in heads 0, 2 is multiplied by 0.4, and what is freed goes to the tokens 'bos'" in words
    assert "in heads 0, 3, and what they gather" in words


def test_scaling_costs_its_queries_and_hides_nothing(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "middle")
    names = {"queries": "last", "keys": "visual", "layers": 1}
    scaling, zeroing = (
        Plan(op).cost(model, batch)
        for op in (
            ScaleAttention(factor=0.5, **names),
            BlockAttention(renormalise=False, **names),
        )
    )
    assert scaling.total["spent"] == zeroing.total["spent"] > 0
    # Where the image is overwritten behind layer 2, what nobody sees of it there is not needed.
    without = ReplaceTokens(by="zero", layers=3)
    seen = Plan(without).cost(model, batch).total["saved"]
    last = {"queries": "text", "keys": "visual", "layers": 2}
    for concealing in (
        BlockAttention(**last),
        BlockAttention(renormalise=False, **last),
        ScaleAttention(factor=0, **last),
    ):
        assert Plan(without, concealing).cost(model, batch).total["saved"] > seen
    # What is hidden in some heads is still seen in others; what is scaled is still seen.
    for showing in (
        BlockAttention(heads=[0, 1, 2], **last),
        BlockAttention(heads=[0, 1, 2], renormalise=False, **last),
        ScaleAttention(factor=0.5, **last),
        ScaleAttention(factor=0, heads=1, **last),
    ):
        assert Plan(without, showing).cost(model, batch).total["saved"] == seen


def test_steps_that_are_scaled_say_who_gets_what(twin: Any) -> None:
    model = twin().model
    batch = encode(model, "ragged")
    steps = Plan(operation("give")).compile(model, batch).steps
    assert [step.site.layer for step in steps] == list(LAYERS)
    for step in steps:
        assert isinstance(step, ScaleWeights)
        assert step.heads == (0, 2)
        takers = BOS.prompt(batch.inputs["input_ids"], batch.inputs["attention_mask"])
        assert torch.equal(step.takers, takers)
