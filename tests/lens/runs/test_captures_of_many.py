"""Many runs that keep what goes on inside layers: each has that of its own run, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from builders.counted_tokens import COUNTED, counting_model
from builders.opened_families import opened
from builders.plans_that_share import BROKEN, RELATIVE, relative, ways
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InputError,
    Plan,
    Run,
    ScaleTokens,
    Unsupported,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.lens.runs import proof_record
from embedlens.lens.runs.many import held_tensors, inside_in_hooks
from embedlens.lens.runs.many.decoder_on_batch import DecoderOnBatch
from embedlens.lens.runs.many.keys_of_sharing import INSIDE
from families.zoo import READABLE, WITH_PROCESSOR

CASES = [(name, "sdpa", 1) for name in READABLE[::2]]
CASES += [(name, "eager", 1) for name in READABLE[1::3]]
CASES += [(name, "sdpa", 2) for name in WITH_PROCESSOR[::2]]
CASES += [(name, "eager", 2) for name in WITH_PROCESSOR[1::2]]
KINDS = ("values", "attention_weights", "head_outputs", "neurons")
OTHERS = ("residual", "attention", "ffn")
PLANS: list[Plan | None] = [
    None,
    *(Plan(ZeroFFN(layers=layer, tokens="visual")) for layer in ("0", "1", "last")),
    Plan(ZeroFFN(layers="0-1", tokens="visual")),
    Plan(AblateAttention(layers=1, tokens="visual")),
    Plan(AblateAttention(layers=1, tokens="visual", heads=0)),
    *(Plan(BlockAttention(queries="last", keys="visual", layers=n)) for n in ("0", "last")),
    Plan(BlockAttention(queries="last", keys="dead", layers=1, renormalise=False)),
    Plan(ScaleTokens(factor=0.5, layers=1, tokens="visual")),
    Plan(WithdrawTokens(tokens="dead", layer=1, method="mask")),
]


def kept_of(run: Run) -> dict[tuple[str, int], torch.Tensor]:
    """What a run kept, by kind and layer."""
    return {
        (kind, layer): states
        for kind in (*KINDS, *OTHERS)
        for layer, states in getattr(run, kind).items()
    }


def runs_of(
    model: VisualLM, batch: Batch, plans: list[Plan | None], **asked: Any
) -> list[tuple[Plan | None, Run]]:
    """The plans that this model takes, each with its own run."""
    found = []
    for plan in plans:
        try:
            found.append((plan, model.run(batch, plan, **asked)))
        except (InputError, Unsupported):
            continue
    return found


def check(model: VisualLM, batch: Batch, own: list[tuple[Plan | None, Run]], **asked: Any) -> None:
    many = model.run_many(batch, [plan for plan, _ in own], **asked)
    for found, (plan, expected) in zip(many, own, strict=True):
        assert relative(found.logits, expected.logits) <= RELATIVE, plan
        mine, theirs = kept_of(found), kept_of(expected)
        assert list(mine) == list(theirs)
        for place, states in theirs.items():
            assert relative(mine[place], states) <= RELATIVE, (plan, place)


def asked_of(model: VisualLM, batch: Batch) -> dict[str, Any]:
    """All kinds that the model has, of tokens whose own states no plan zeroes behind a matrix."""
    found = []
    for kind in (*KINDS, *OTHERS):
        try:
            model.run(batch, capture=kind)
            found.append(kind)
        except Unsupported:
            continue
    return {"capture": found, "tokens": "text", "queries": "all"}


@pytest.mark.quick("llava")
@pytest.mark.parametrize(("name", "attn", "samples"), CASES)
def test_what_many_runs_keep_equals_their_own_runs(name: str, attn: str, samples: int) -> None:
    model, batch = opened(name, attn, samples)
    asked = asked_of(model, batch)
    own = runs_of(model, batch, PLANS, **asked)
    assert len(own) >= 3 or not asked["capture"]
    check(model, batch, own, **asked)
    # Kept in one layer only, so that others are computed in part.
    one = {**asked, "capture": asked["capture"][:1], "layers": [model.n_layers - 1]}
    try:
        own = runs_of(model, batch, PLANS, **one)
        check(model, batch, own, **one)
    except Unsupported:
        assert not own
    if set(asked["capture"]) & {*KINDS}:
        assert ways(model)[INSIDE] == {True}


@pytest.fixture
def model() -> VisualLM:
    """A model whose FFNs count the tokens that go through them."""
    return counting_model()


@pytest.fixture
def batch(model: VisualLM) -> Batch:
    return model.encode(tiny.image(0), tiny.PROMPTS["middle"])


def computed(model: VisualLM, batch: Batch, plans: list[Plan | None], **many: Any) -> list[int]:
    """Tokens that went through each layer's FFN, once everything has been compared."""
    model.run_many(batch, plans, **many)
    COUNTED[:] = [0] * tiny.LAYERS
    model.run_many(batch, plans, **many)
    return list(COUNTED)


SWEEP: list[Plan | None] = [None, *(Plan(ZeroFFN(layers=n)) for n in range(tiny.LAYERS))]


@pytest.mark.parametrize("kind", ["attention_weights", "values", "head_outputs"])
def test_layers_below_the_edit_run_once(model: VisualLM, batch: Batch, kind: str) -> None:
    """And of the layer in which plans part, what is kept is that of the plan they part from."""
    tokens, text = batch.length, batch.length - len(batch.visual)
    rows = computed(model, batch, SWEEP, capture=kind, tokens="text", queries="all")
    # Of layers that a plan zeroes, the other tokens. Of the last one somebody reads the last.
    assert rows == [tokens + text - text, 2 * tokens, 3 * tokens, 4 * tokens]


def test_what_is_kept_counts_as_memory(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"capture": "attention_weights", "queries": "all"}
    own = runs_of(model, batch, SWEEP, **asked)
    most: list[int] = []
    usual = held_tensors.Memory.take

    def take(it: Any, size: int) -> bool:
        done = usual(it, size)
        most.append(it.held)
        return done

    monkeypatch.setattr(held_tensors.Memory, "take", take)
    model.run_many(batch, SWEEP)
    streams = max(most)
    check(model, batch, own, **asked)
    weights = sum(w.numel() * 4 for w in own[0][1].attention_weights.values())
    # Those of all layers, once, although every later plan starts behind some of them.
    assert max(most) == streams + weights
    needed, rows = max(most), {}
    for bound in (0, needed // 2, needed):
        most.clear()
        check(model, batch, own, max_memory=bound, **asked)
        assert max(most, default=0) <= bound
        rows[bound] = sum(computed(model, batch, SWEEP, max_memory=bound, **asked))
    assert rows[0] > rows[needed // 2] > rows[needed]


def test_what_a_run_refuses_many_refuse(model: VisualLM, batch: Batch) -> None:
    """An edit behind the matrix whose input is kept, in a layer whose beginning is shared."""
    other = Plan(ZeroFFN(layers=2, tokens="last"))
    for plan, kind in (
        (Plan(AblateAttention(layers=1)), "head_outputs"),
        (Plan(ZeroFFN(layers=1)), "neurons"),
    ):
        for _ in range(2):
            with pytest.raises(InputError, match="layer 1 make goes through more than one matrix"):
                model.run_many(batch, [None, other, plan], capture=kind)
        model.run_many(batch, [None, other, plan], capture=kind, layers=[2])


# ---------------------------------------------------------------- what is broken is seen


def more(usual: Any) -> Any:
    return lambda *args, **kwargs: usual(*args, **kwargs) * 1.1


READ = {
    "values_of": ("values",),
    "weights_of_call": ("attention_weights",),
    "before_of": ("head_outputs", "neurons"),
}


@pytest.mark.quick("llava")
@pytest.mark.parametrize("broken", READ)
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "internvl"])
def test_what_is_read_wrongly_in_hooks_is_read_in_traces(
    name: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = opened(name)
    asked = asked_of(model, batch)
    asked["capture"] = [kind for kind in READ[broken] if kind in asked["capture"]]
    own = runs_of(model, batch, PLANS, **asked)
    proof_record._PROVEN.pop(model.hf, None)
    monkeypatch.setattr(inside_in_hooks, broken, more(getattr(inside_in_hooks, broken)))
    check(model, batch, own, **asked)
    check(model, batch, own, **asked)
    seen = ways(model)
    assert seen[INSIDE] == {False}
    # Nothing else is blamed.
    others = {name for name, right in seen.items() if False in right} - {INSIDE}
    assert not others
    proof_record._PROVEN.pop(model.hf, None)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_shortcut_is_not_used(
    model: VisualLM, batch: Batch, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"capture": KINDS, "tokens": "text", "queries": "all"}
    for here in (asked, {**asked, "layers": [1]}):
        own = runs_of(model, batch, PLANS, **here)
        proof_record._PROVEN.pop(model.hf, None)
        with monkeypatch.context() as patch:
            BROKEN[broken][0](patch)
            check(model, batch, own, **here)


def test_a_shortcut_in_a_layer_that_is_read_would_show(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparisons of whole layers do not look inside: of the last row alone, row 0 is the last."""
    asked: dict[str, Any] = {"capture": "neurons", "tokens": "bos"}
    knockouts = [Plan(BlockAttention(queries="last", keys="visual", layers=n)) for n in (0, 1)]
    own = runs_of(model, batch, [None, *knockouts], **asked)
    check(model, batch, own, **asked)
    check(model, batch, own, **asked)
    monkeypatch.setattr(DecoderOnBatch, "read_inside", lambda *_: False)
    with pytest.raises(AssertionError, match="neurons"):
        check(model, batch, own, **asked)


@pytest.mark.parametrize("given", ["tokens", "queries", "keys"])
def test_tokens_by_score_are_refused_by_the_name_of_the_call(twin: Any, given: str) -> None:
    model = twin().model
    batch = model.encode([tiny.image(0)], [tiny.PROMPTS["middle"]])
    told: dict[str, Any] = {given: "text | top(2, by=norm, layer=1)"}
    with pytest.raises(InputError, match=r"^run_many: top\(2, by=norm, .* call run\(batch, plan"):
        model.run_many(batch, [None, Plan(ZeroFFN(layers=1))], **told)
