"""Passes that share work: any set of plans gives the numbers of single runs, on every family."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput

from builders.opened_families import opened
from builders.plans_that_share import BROKEN, RELATIVE, ROWS, SWEEP, relative, singles, ways
from embedlens import (
    AblateAttention,
    BlockAttention,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    ReplaceTokens,
    ScaleTokens,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.lens.runs import proof_record
from embedlens.lens.runs.many import before_decoder, keys_of_sharing
from families.zoo import READABLE, WITH_PROCESSOR

# All families one way, a third of them the other; padded where there is a processor.
CASES = [(name, "sdpa", 1) for name in READABLE] + [(name, "eager", 1) for name in READABLE[::3]]
CASES += [(name, "sdpa", 2) for name in WITH_PROCESSOR]
CASES += [(name, "eager", 2) for name in WITH_PROCESSOR[::2]]


TOKENS = st.sampled_from(["visual", "dead", "alive", "last", "text & ~bos"])
LAYERS = st.sampled_from(["0", "1", "last", "all"])


def later(kind: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An operation that the test makes: hypothesis watches for dice, which type checks throw."""
    return st.builds(functools.partial, st.just(kind), **fields)


OPERATION = st.one_of(
    later(ZeroFFN, layers=LAYERS, tokens=TOKENS),
    later(AblateAttention, layers=LAYERS, tokens=TOKENS),
    later(
        BlockAttention,
        queries=st.sampled_from(["last", "text & ~bos"]),
        keys=st.sampled_from(["visual", "dead"]),
        layers=LAYERS,
    ),
    later(ScaleTokens, factor=st.just(0.5), layers=LAYERS, tokens=TOKENS),
    later(ReplaceTokens, by=st.just("noise"), layers=LAYERS, tokens=TOKENS, seed=st.just(3)),
    later(
        PatchTokens,
        source=st.just(0),
        target=st.just(1),
        tokens=TOKENS,
        site=st.sampled_from(["residual", "ffn", "attention"]),
    ),
    st.just(WithdrawTokens(tokens="dead", layer=1, method="mask")),
    st.just(PruneTokens(tokens="dead", layer=1)),
    st.just(BlockAttention(queries="last", keys="dead", layers=0, renormalise=False)),
)


def plan_of(operations: list[Any] | None) -> Plan | None:
    """A plan of them; of the first alone where two contradict each other."""
    if operations is None:
        return None
    made = [op() if isinstance(op, functools.partial) else op for op in operations]
    try:
        return Plan(*made)
    except InputError:
        return Plan(made[0])


DRAWN = st.one_of(st.none(), st.lists(OPERATION, min_size=1, max_size=2))


# The same examples every time, and none thrown away for being slow on a busy machine.
REPEATABLE: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.quick("llava")
@pytest.mark.parametrize(("name", "attn", "samples"), CASES)
@settings(max_examples=2, **REPEATABLE)
@given(drawn=st.lists(DRAWN, min_size=3, max_size=7), captured=st.booleans())
def test_any_set_of_plans_equals_single_runs(
    name: str, attn: str, samples: int, drawn: list[Any], captured: bool
) -> None:
    plans = [*map(plan_of, drawn)]
    model, batch = opened(name, attn, samples)
    kept: dict[str, Any] = {}
    if captured and "sublayers" not in model.anatomy.refusals:
        kept = {"capture": ("residual", "ffn"), "tokens": "visual"}
    own = singles(model, batch, plans, **kept)
    many = model.run_many(batch, [plan for plan, _ in own], **kept)
    for found, (plan, expected) in zip(many, own, strict=True):
        assert relative(found.logits, expected.logits) <= RELATIVE, plan
        for site in kept.get("capture", ()):
            for layer, states in getattr(expected, site).items():
                assert relative(getattr(found, site)[layer], states) <= RELATIVE, (plan, layer)


@pytest.mark.quick("llava")
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", READABLE)
def test_a_broken_shortcut_is_seen_and_not_used(
    name: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = opened(name)
    own = singles(model, batch, SWEEP)
    proof_record._PROVEN.pop(model.hf, None)
    plans = [plan for plan, _ in own]
    model.run_many(batch, plans)
    applies = ways(model)
    breaks, named = BROKEN[broken]
    touched = {way for way in named if True in applies.get(way, ())}
    proof_record._PROVEN.pop(model.hf, None)
    breaks(monkeypatch)
    for found, (plan, expected) in zip(model.run_many(batch, plans), own, strict=True):
        assert relative(found.logits, expected.logits) <= RELATIVE, plan
    seen = ways(model)
    # A step may hide what is broken, in comparisons that then speak for no others.
    assert {way for way in touched if False not in seen.get(way, ())} == set()
    # What is not broken is not blamed.
    for innocent in {keys_of_sharing.LAYERS, keys_of_sharing.TOWERS} - set(named):
        assert seen.get(innocent, applies.get(innocent)) == applies.get(innocent)
    proof_record._PROVEN.pop(model.hf, None)


@pytest.mark.quick("llava")
@pytest.mark.parametrize("name", ["llava", "gemma3", "internvl", "qwen2_5_vl", "idefics3"])
def test_all_shortcuts_hold_here(name: str) -> None:
    model, batch = opened(name)
    proof_record._PROVEN.pop(model.hf, None)
    model.run_many(batch, SWEEP)
    found = ways(model)
    assert set(found) >= {*ROWS, "ffn known", "layers", "towers", "steps", "alone"}
    assert set().union(*found.values()) == {True}


def test_what_is_returned_again_is_a_copy_of_the_same_kind() -> None:
    """Tensors that are one, or have one memory, are so in the copy, and nobody reaches the kept."""
    states = torch.arange(12.0).view(2, 6)
    kept = BaseModelOutput(last_hidden_state=states, hidden_states=(states.clone(), states))
    again = before_decoder.return_again(kept)
    assert type(again) is BaseModelOutput
    assert again.hidden_states[1] is again.last_hidden_state is again["last_hidden_state"]
    part = before_decoder.return_again({"all": states, "some": [states[:, :2], "text"]})
    for made in (again.last_hidden_state, *again.hidden_states[:1], part["all"]):
        assert torch.equal(made, states)
        made.zero_()
    assert not part["some"][0].any()
    assert part["some"][1] == "text"
    assert torch.equal(states, torch.arange(12.0).view(2, 6))
    assert torch.equal(kept.hidden_states[0], states)
