"""Random selectors and random plans: laws that hold for all of them, and torch hooks as the judge.

The oracle here reads operations as declarations only: it has its own masks for every selector, its
own hooks and its own attention masks, and shares no code with what lowers a plan to steps.
"""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import tiny
from amounts import examples
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
    ScaleTokens,
    TokenClasses,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.interventions import Box, ImageIs, Name, Random, Selector, parse_selector
from oracles.declared import SETS, Hooks, numbers
from tolerances import EQUAL, MOVED_A_LITTLE

N = tiny.LAYERS
SCHEMA = Plan.json_schema()
# The same examples every time, and none thrown away for being slow on a busy machine.
REPEATABLE: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
ROWS = {"middle": (0,), "two": (1, 2), "short": (3,), "end": (4,)}


@functools.cache
def batch_of(model: VisualLM, names: tuple[str, ...], seed: int = 0) -> Batch:
    """Some prompts, padded to one length, and classes drawn at random."""
    made = model.encode(
        [[tiny.image(index) for index in ROWS[name]] for name in names],
        [tiny.PROMPTS[name] for name in names],
    )
    rng = np.random.default_rng(seed)
    masks = {name: rng.random(len(made.visual)) < 0.3 for name in ("vit-sink", "llm-sink", "dead")}
    return made.with_classes(TokenClasses(masks))


BATCHES = st.tuples(
    st.lists(st.sampled_from(sorted(ROWS)), min_size=1, max_size=3).map(tuple), st.integers(0, 3)
)

# ---------------------------------------------------------------- selectors

LEAVES = st.one_of(
    st.sampled_from("visual text bos last generated patch sink vit-sink dead alive".split()).map(
        Name
    ),
    st.integers(0, 2).map(ImageIs),
    st.builds(
        Box,
        st.tuples(st.integers(0, 1), st.integers(2, 5)),
        st.tuples(st.integers(0, 1), st.integers(2, 5)),
    ),
)
SELECTORS: st.SearchStrategy[Selector] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        inner.map(lambda a: ~a),
        # As many as there are among those drawn from: such a draw is always possible.
        st.builds(lambda a, b, seed: Random(a & b, b, seed), inner, inner, st.integers(0, 9)),
    ),
    max_leaves=5,
)


@settings(max_examples=examples(100), **REPEATABLE)
@given(SELECTORS)
def test_text_and_object_are_the_same_selector(selector: Selector) -> None:
    again = parse_selector(str(selector))
    assert again == selector
    assert hash(again) == hash(selector)
    assert str(again) == str(selector)
    assert parse_selector(f"  {str(selector).replace(' ', '  ')} ") == selector


@settings(max_examples=examples(60), **REPEATABLE)
@given(SELECTORS, SELECTORS, SELECTORS, BATCHES)
def test_selectors_obey_boolean_algebra(
    model: VisualLM, a: Selector, b: Selector, c: Selector, rows: Any
) -> None:
    batch = batch_of(model, *rows)
    real = batch.inputs["attention_mask"].numpy() > 0

    def same(one: Selector, other: Selector) -> bool:
        first, second = one.select(batch), other.select(batch)
        prompts = (first.prompt == second.prompt).all()
        return bool(prompts and (first.generated == second.generated).all())

    assert not (a.select(batch).prompt & ~real).any()
    assert same(a & b, b & a)
    assert same(a | b, b | a)
    assert same(~~a, a)
    assert same(~(a & b), ~a | ~b)
    assert same(a & (b | c), (a & b) | (a & c))
    assert same(a | (a & b), a)
    assert not (a & ~a).select(batch).prompt.any()
    assert ((a | ~a).select(batch).prompt == real).all()
    assert (a | ~a).select(batch).generated.all()


@settings(max_examples=examples(60), **REPEATABLE)
@given(SELECTORS, SELECTORS, st.integers(0, 99), BATCHES)
def test_a_matched_control_is_matched_and_belongs_to_its_sample(
    model: VisualLM, like: Selector, within: Selector, seed: int, rows: Any
) -> None:
    batch = batch_of(model, *rows)
    drawn = Random(like & within, within, seed).select(batch)
    pool = within.select(batch).prompt
    assert (drawn.prompt.sum(1) == (like & within).select(batch).prompt.sum(1)).all()
    assert not (drawn.prompt & ~pool).any()
    assert not drawn.generated.any()


# ---------------------------------------------------------------- plans as text

LAYERS = st.one_of(
    st.sampled_from(["all", "last", "0-2"]),
    st.integers(0, 9),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
PHASES = st.sampled_from(["prefill", "decode", "all"])
LATER = {"layer": st.integers(0, 9), "tokens": SELECTORS, "allow_empty": st.booleans()}
FIELDS: dict[Any, dict[str, st.SearchStrategy[Any]]] = {
    AblateAttention: {"layers": LAYERS, "tokens": SELECTORS, "phase": PHASES},
    ZeroFFN: {"layers": LAYERS, "tokens": SELECTORS, "allow_empty": st.booleans()},
    PatchTokens: {
        "source": st.integers(0, 9),
        "target": st.integers(0, 9),
        "tokens": SELECTORS,
        "site": st.sampled_from(["residual", "attention", "ffn"]),
        "from_tokens": st.none() | SELECTORS,
        "states": st.none() | st.sampled_from(["donor", "other"]),
    },
    ReplaceTokens: {
        "by": st.sampled_from(["zero", "mean", "class-mean", "noise", "other"]),
        "tokens": SELECTORS,
        "layers": LAYERS,
    },
    ScaleTokens: {
        "factor": st.floats(-9, 9, allow_nan=False),
        "tokens": SELECTORS,
        "layers": LAYERS,
        "phase": PHASES,
    },
    BlockAttention: {
        "queries": SELECTORS,
        "keys": SELECTORS,
        "layers": LAYERS,
        "renormalise": st.booleans(),
    },
    PruneTokens: LATER,
    WithdrawTokens: LATER,
    InjectTokens: {**LATER, "norm": st.sampled_from(["raw", "rescaled", "matched"])},
}
# Built in the tests and not here, where the runtime type check would draw at random.
DECLARED = st.lists(
    st.one_of(*(st.tuples(st.just(k), st.fixed_dictionaries(f)) for k, f in FIELDS.items())),
    max_size=4,
)


def declared(parts: Sequence[tuple[Any, Mapping[str, Any]]]) -> Plan:
    """The plan, unless the same tokens move twice in it, which may be a contradiction."""
    operations = [kind(**fields) for kind, fields in parts]
    moving = [op.tokens for op in operations if op.absent(99)]
    assume(len(moving) == len(set(moving)))
    return Plan(*operations)


@settings(max_examples=examples(50), **REPEATABLE)
@given(DECLARED)
def test_a_plan_is_its_text(parts: Any) -> None:
    plan = declared(parts)
    texts = (plan.to_yaml(), plan.to_json())
    for again in (*map(Plan.from_yaml, texts), pickle.loads(pickle.dumps(plan))):
        assert again == plan
        assert hash(again) == hash(plan)
        assert (again.to_yaml(), again.to_json()) == texts
    for text in texts:
        jsonschema.validate(
            yaml.safe_load(text),
            SCHEMA,
            cls=jsonschema.Draft202012Validator,
        )
    assert len(plan.frame) == len(plan)
    assert plan + Plan() == plan == Plan() + plan


@settings(max_examples=examples(40), **REPEATABLE)
@given(DECLARED, DECLARED, DECLARED)
def test_adding_plans_is_associative(a: Any, b: Any, c: Any) -> None:
    one, two, three = (declared(parts) for parts in (a, b, c))
    declared([*a, *b, *c])
    assert (one + two) + three == one + (two + three)


# ---------------------------------------------------------------- the oracle

TOKENS = st.sampled_from(sorted(SETS))
PRUNED = st.sampled_from(["visual", "image[0]", "box[0:2, 1:3]", "visual & ~box[0:2, 1:3]"])
SOME = st.lists(st.integers(0, N - 1), min_size=1, max_size=2, unique=True)
ACTS: dict[Any, dict[str, st.SearchStrategy[Any]]] = {
    AblateAttention: {"layers": SOME, "tokens": TOKENS},
    ZeroFFN: {"layers": SOME, "tokens": TOKENS},
    PatchTokens: {"source": st.integers(0, N), "target": st.integers(0, N), "tokens": TOKENS},
    ReplaceTokens: {"by": st.sampled_from(["zero", "mean"]), "layers": SOME, "tokens": TOKENS},
    ScaleTokens: {"factor": st.sampled_from([-1.0, 0.25, 3.0]), "layers": SOME, "tokens": TOKENS},
    BlockAttention: {"queries": TOKENS, "keys": PRUNED, "layers": SOME},
    WithdrawTokens: {"layer": st.integers(0, N - 1), "tokens": PRUNED},
    InjectTokens: {"layer": st.integers(1, N - 1), "tokens": PRUNED},
}
ACTING = st.lists(
    st.one_of(*(st.tuples(st.just(k), st.fixed_dictionaries(f)) for k, f in ACTS.items())),
    min_size=1,
    max_size=3,
)
PROMPTS = st.sampled_from([("middle",), ("middle", "two"), ("two", "short", "middle")])


def built(parts: Any) -> list[Any]:
    return [kind(**fields) for kind, fields in parts]


def resolved(model: VisualLM, batch: Batch, operations: Sequence[Any]) -> Plan:
    """The plan if it can be carried out; the example is left out otherwise."""
    try:
        plan = Plan(*operations)
        plan.compile(model, batch)
    except InputError:
        assume(False)
    return plan


@settings(max_examples=examples(80), **REPEATABLE)
@given(ACTING, PROMPTS)
@example([(PatchTokens, {"source": 3, "target": 1}), (ZeroFFN, {"layers": [0]})], ("two",))
def test_random_plans_equal_torch_hooks(twin: Any, model: VisualLM, parts: Any, rows: Any) -> None:
    batch = batch_of(model, rows)
    operations = built(parts)
    plan = resolved(model, batch, operations)
    expected, _ = Hooks(twin().plain, batch.inputs).logits(operations)
    found = model.run(batch, plan, logits="all").logits
    real = batch.inputs["attention_mask"] > 0
    assert float((found - expected)[real].abs().max()) < EQUAL


def lost(message: str) -> tuple[int, list[int]] | None:
    """Number and layers of an operation that is said to change nothing."""
    before, _, after = message.partition(" would change nothing in ")
    if not after:
        return None
    words = after.split(":")[0].replace("layers", "").replace("layer", "")
    return int(before.split()[0].removeprefix("operations.")), [int(n) for n in words.split(",")]


def rest_of(operation: Any, layers: Sequence[int]) -> str:
    return ",".join(str(n) for n in numbers(str(operation.layers)) if n not in layers)


def test_what_is_refused_as_lost_changes_nothing(twin: Any, model: VisualLM) -> None:
    refused: set[type] = set()

    @settings(max_examples=examples(200), **REPEATABLE)
    @given(ACTING, PROMPTS)
    @example([(ZeroFFN, {"layers": [1]}), (PatchTokens, {"source": 0, "target": 2})], ("two",))
    @example([(PatchTokens, {"source": at, "target": 2}) for at in (0, 1)], ("two",))
    def each(parts: Any, rows: Any) -> None:
        batch, operations = batch_of(model, rows), built(parts)
        hooks = Hooks(twin().plain, batch.inputs)
        try:
            Plan(*operations).compile(model, batch)
            return
        except InputError as error:
            found = lost(str(error))
        if found is None:
            return
        number, layers = found
        operation = operations[number]
        without = [op for index, op in enumerate(operations) if index != number]
        if hasattr(operation, "layers") and (rest := rest_of(operation, layers)):
            without.insert(number, operation.model_copy(update={"layers": rest}))
        elif not hasattr(operation, "layers") and operation.absent(N):
            return  # what it hides it may still hide
        kept = hooks.real.clone()
        for op in operations:
            if N - 1 in op.absent(N):
                kept &= ~hooks.mask(op.tokens)
        whole, rest_only = (hooks.logits(some)[0] for some in (operations, without))
        assert float((whole - rest_only)[kept].abs().max()) < EQUAL
        refused.add(type(operation))

    each()
    assert refused >= {ZeroFFN, PatchTokens}


@settings(max_examples=examples(60), **REPEATABLE)
@given(
    st.sampled_from([AblateAttention, ZeroFFN]),
    st.fixed_dictionaries({"layers": st.integers(0, N - 1), "tokens": TOKENS}),
    st.fixed_dictionaries(ACTS[PatchTokens]),
    st.booleans(),
)
def test_what_is_accepted_changes_something(
    twin: Any, model: VisualLM, kind: Any, fields: Any, patch: Any, first: bool
) -> None:
    """An operation on sublayers beside a patch: without it, something else comes out."""
    assume(patch["source"] != patch["target"])
    batch = batch_of(model, ("middle", "two"))
    operations = [kind(**fields), PatchTokens(**patch)]
    operations = operations if first else operations[::-1]
    resolved(model, batch, operations)
    hooks = Hooks(twin().plain, batch.inputs)
    whole = hooks.logits(operations)[0]
    for number in range(2):
        left = hooks.logits([operations[1 - number]])[0]
        assert float((whole - left)[hooks.real].abs().max()) > MOVED_A_LITTLE


# ---------------------------------------------------------------- order, sequence, no-ops

SITES = [*itertools.product((AblateAttention, ZeroFFN), range(N))]


@settings(max_examples=examples(25), **REPEATABLE)
@given(
    st.lists(st.tuples(st.sampled_from(SITES), TOKENS), min_size=1, max_size=3, unique_by=hash),
    st.lists(st.tuples(PRUNED, st.integers(0, N - 1)), max_size=1),
    st.lists(st.tuples(TOKENS, PRUNED, st.integers(0, N - 1)), max_size=2),
    st.randoms(use_true_random=False),
)
def test_order_does_not_matter_where_sites_differ(
    model: VisualLM, zeroed: Any, pruned: Any, blocked: Any, random: Any
) -> None:
    batch = batch_of(model, ("middle", "two"))
    operations = [
        *(kind(layers=layer, tokens=tokens) for (kind, layer), tokens in zeroed),
        *(WithdrawTokens(tokens=tokens, layer=layer) for tokens, layer in pruned),
        *(BlockAttention(queries=q, keys=k, layers=layer) for q, k, layer in blocked),
    ]
    plan = resolved(model, batch, operations)
    shuffled = list(operations)
    random.shuffle(shuffled)
    one, other = (model.run(batch, p, logits="all").logits for p in (plan, Plan(*shuffled)))
    assert torch.equal(one, other)


@settings(max_examples=examples(25), **REPEATABLE)
@given(ACTING, st.integers(0, N - 1), TOKENS, st.sampled_from(["attention", "ffn"]))
def test_adding_a_plan_is_doing_it_in_a_trace_of_the_other(
    model: VisualLM, parts: Any, layer: int, tokens: str, part: str
) -> None:
    batch, operations = batch_of(model, ("middle", "two")), built(parts)
    kind = AblateAttention if part == "attention" else ZeroFFN
    assume(not any(isinstance(op, PatchTokens) and op.source > op.target for op in operations))
    both = resolved(model, batch, [*operations, kind(layers=layer, tokens=tokens)])
    rows, columns = parse_selector(tokens).select(batch).prompt.nonzero()
    block = model.layers[layer]
    site = block.self_attn if part == "attention" else block.mlp
    with torch.no_grad(), model.trace(batch, Plan(*operations)):
        output = site.output
        states = (output[0] if part == "attention" else output).clone()
        states[rows, columns] = 0
        site.output = (states, *output[1:]) if part == "attention" else states
        logits = model.nn.output.logits.save()
    assert torch.equal(model.run(batch, both, logits="all").logits, logits)


@settings(max_examples=examples(20), **REPEATABLE)
@given(
    st.lists(
        st.one_of(
            st.integers(0, N).map(lambda at: (PatchTokens, {"source": at, "target": at})),
            st.just((InjectTokens, {"layer": 0})),
            st.integers(0, N - 1).map(
                lambda at: (
                    PruneTokens,
                    {"layer": at, "tokens": "visual & text", "allow_empty": True},
                )
            ),
            st.just((BlockAttention, {"queries": "bos", "keys": "visual", "allow_empty": True})),
            st.just((ZeroFFN, {"tokens": "image[2]", "allow_empty": True})),
        ),
        max_size=4,
        unique_by=str,
    ),
    PROMPTS,
)
def test_plans_that_change_nothing_change_no_bit(model: VisualLM, parts: Any, rows: Any) -> None:
    operations = built(parts)
    assume(sum(isinstance(op, PruneTokens) for op in operations) < 2)
    batch = batch_of(model, rows)
    clean = model.run(batch, logits="all").logits
    assert torch.equal(model.run(batch, Plan(*operations), logits="all").logits, clean)


@settings(max_examples=examples(30), **REPEATABLE)
@given(SELECTORS, st.integers(0, 99), PROMPTS, st.integers(0, 3))
def test_removing_is_hiding(
    model: VisualLM, like: Selector, seed: int, rows: Any, classes: int
) -> None:
    """Any set of tokens that leaves each prompt its first and last one."""
    batch = batch_of(model, rows, classes)
    gone = f"random(like=({like}) & visual, within=visual, seed={seed}) | ({like}) & text"
    tokens = f"({gone}) & ~last & ~bos"
    assume(parse_selector(tokens).select(batch).prompt.any())
    hidden, removed = (
        model.run(batch, Plan(PruneTokens(tokens=tokens, method=method))).logits
        for method in ("mask", "remove")
    )
    assert float((hidden - removed).abs().max()) < EQUAL
