"""Operations that undo one another are refused with the paths of both, and only those are."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

import tiny
from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    InjectTokens,
    InputError,
    PatchTokens,
    Plan,
    PruneTokens,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
)
from embedlens.interventions import Operation
from embedlens.interventions.operations.phrases import Phrases
from embedlens.interventions.operations.target import Target
from embedlens.interventions.program.contradictions import check_lowered
from embedlens.interventions.program.site import Site
from embedlens.interventions.program.steps import Noise, Read, Scale, Write, Zero
from embedlens.lens.runs.plan_protocol import Pass

N = tiny.LAYERS
BACK = {"source": 3, "target": 1}


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    images = [[tiny.image(0)], [tiny.image(1), tiny.image(2)]]
    return model.encode(images, [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]])


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ((InjectTokens(layer=1), InjectTokens(layer=2)), "enter twice"),
        ((WithdrawTokens(layer=1), PruneTokens(layer=3)), "leave twice"),
        ((PruneTokens(), PruneTokens()), "leave twice"),
        ((InjectTokens(layer=3), WithdrawTokens(layer=2)), "before they have entered"),
        ((WithdrawTokens(layer=3), InjectTokens(layer=3)), "before they have entered"),
        ((PruneTokens(), InjectTokens(layer=1)), "before they have entered"),
    ],
)
def test_entering_and_leaving_contradict_each_other_without_a_model(
    operations: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        Plan(ZeroFFN(tokens="bos"), *operations)
    for number, operation in enumerate(operations, start=1):
        assert f"operations.{number}" in str(refused.value)
        assert repr(operation) in str(refused.value)
    with pytest.raises(InputError, match=reason):
        Plan(operations[0]) + Plan(operations[1])


@pytest.mark.parametrize(
    "operations",
    [
        (InjectTokens(layer=1), WithdrawTokens(layer=2)),
        (InjectTokens(layer=0), InjectTokens(layer=2)),
        (InjectTokens(layer=1, tokens="image[0]"), InjectTokens(layer=2, tokens="image[1]")),
        (PruneTokens(tokens="image[0]"), WithdrawTokens(layer=2, tokens="image[1]")),
        (PruneTokens(tokens="image[0]"), WithdrawTokens(layer=2)),
    ],
)
def test_what_can_be_meant_together_is_taken(
    operations: Any, model: VisualLM, batch: Batch
) -> None:
    assert Plan(*operations).compile(model, batch)


# Operation that is lost, in which layers, and the one that undoes it; by number.
LOST: dict[str, tuple[tuple[Any, ...], int, str, int]] = {
    "written over": (
        (PatchTokens(source=0, target=2), PatchTokens(source=1, target=2)),
        *(0, "layer 2", 1),
    ),
    "sublayer before a write": ((ZeroFFN(layers=1), PatchTokens(source=0, target=2)), 0, "1", 1),
    "attention before a write": (
        (AblateAttention(layers=1), PatchTokens(source=0, target=2)),
        *(0, "layer 1", 1),
    ),
    "one of the layers that are named": (
        (ZeroFFN(layers="0-1"), PatchTokens(source=0, target=2)),
        *(0, "layer 1", 1),
    ),
    "the last sublayer before the end": (
        (ZeroFFN(layers="last"), PatchTokens(source=0, target=N)),
        *(0, f"layer {N - 1}", 1),
    ),
    "some tokens of those written": (
        (ZeroFFN(layers=1, tokens="image[0]"), PatchTokens(source=0, target=2)),
        *(0, "layer 1", 1),
    ),
    "not yet there": ((AblateAttention(layers="0-2"), InjectTokens(layer=2)), 0, "layers 0, 1", 1),
    "no longer there": ((PruneTokens(layer=2), ZeroFFN(layers=2)), 1, "layer 2", 0),
    "nobody sees them any more": ((ZeroFFN(layers=1), WithdrawTokens(layer=2)), 0, "layer 1", 1),
    "never there": ((AblateAttention(), PruneTokens()), 0, "layers 0, 1, 2, 3", 1),
    "some of those that left": (
        (PruneTokens(), WithdrawTokens(layer=2, tokens="image[0]")),
        *(1, "layers 2, 3", 0),
    ),
    "hidden keys have left": (
        (BlockAttention(queries="text", keys="visual", layers=2), PruneTokens(layer=1)),
        *(0, "layer 2", 1),
    ),
    "queries have left": (
        (BlockAttention(queries="visual", keys="visual", layers=2), PruneTokens(layer=1)),
        *(0, "layer 2", 1),
    ),
    "queries written over": (
        (
            BlockAttention(queries="visual", keys="visual", layers=1),
            PatchTokens(source=0, target=2),
        ),
        *(0, "layer 1", 1),
    ),
    "back to tokens that have left": (
        (PatchTokens(**BACK), WithdrawTokens(layer=1)),
        *(0, "layer 1", 1),
    ),
    "written before they enter": (
        (PatchTokens(source=0, target=1), InjectTokens(layer=2)),
        *(0, "layer 1", 1),
    ),
}


@pytest.mark.parametrize(("operations", "lost", "layers", "cause"), LOST.values(), ids=LOST)
def test_what_another_operation_undoes_is_refused_with_both_paths(
    model: VisualLM, batch: Batch, operations: Any, lost: int, layers: str, cause: int
) -> None:
    bystander = ZeroFFN(tokens="bos", layers=0)
    with pytest.raises(InputError) as refused:
        Plan(*operations, bystander).compile(model, batch)
    message = str(refused.value)
    assert message.startswith(f"operations.{lost} ({operations[lost]!r}) would change nothing in ")
    assert f"{layers}:" in message
    assert f"because of operations.{cause} ({operations[cause]!r})" in message
    assert "operations.2" not in message
    for operation in operations:
        Plan(operation, bystander).compile(model, batch)


def test_operations_keep_their_numbers_in_an_earlier_pass(model: VisualLM, batch: Batch) -> None:
    """A backward patch is left out of the pass it reads, whose refusals once counted without it."""
    lost = (ZeroFFN(layers=1), PatchTokens(source=0, target=2))
    with pytest.raises(InputError, match=r"operations\.1 \(ZeroFFN.*because of operations\.2 "):
        Plan(PatchTokens(source=4, target=0, tokens="bos"), *lost).compile(model, batch)


TAKEN: dict[str, tuple[Any, ...]] = {
    "freezing": (AblateAttention(), ZeroFFN()),
    "on all layers, of which some are lost": (ZeroFFN(), PatchTokens(source=0, target=2)),
    "all layers, one by one": (
        AblateAttention(layers=range(N)),
        PatchTokens(source=0, target=2),
    ),
    "all layers and tokens that enter": (AblateAttention(), InjectTokens(layer=2)),
    "all layers and tokens that leave": (AblateAttention(), WithdrawTokens(layer=2)),
    "zero twice": (ZeroFFN(), ZeroFFN(tokens="image[0]", layers="0-1")),
    "hidden twice": (
        BlockAttention(queries="text", keys="visual"),
        BlockAttention(queries="last", keys="image[0]"),
    ),
    "hidden from tokens that gather nothing": (
        BlockAttention(queries="visual", keys="visual"),
        AblateAttention(),
    ),
    "tokens that overlap": (
        ZeroFFN(layers=1),
        PatchTokens(source=0, target=2, tokens="image[0]"),
    ),
    "overlapping writes": (
        PatchTokens(source=0, target=2),
        PatchTokens(source=1, target=2, tokens="image[0]"),
    ),
    "read before it is written over": (
        PatchTokens(source=2, target=2),
        PatchTokens(source=2, target=2),
    ),
    "used by the first of two passes": (ZeroFFN(layers=0), PatchTokens(**BACK)),
    "used by the second of two passes": (ZeroFFN(layers=3), PatchTokens(**BACK)),
    "written again behind a backward patch": (
        PatchTokens(**BACK),
        PatchTokens(source=1, target=3),
    ),
    "read by others before it is written over": (
        AblateAttention(layers=0),
        PatchTokens(source=0, target=2),
    ),
    "entry states that were written": (
        PatchTokens(source=0, target=0),
        InjectTokens(layer=2),
    ),
    "what entered is patched on": (InjectTokens(layer=2), PatchTokens(source=2, target=3)),
    "what leaves is patched before": (PatchTokens(source=0, target=1), WithdrawTokens(layer=2)),
    "the norm of others is read": (
        ZeroFFN(layers=1, tokens="text"),
        InjectTokens(layer=2, norm="matched"),
        PatchTokens(source=0, target=2, tokens="text"),
    ),
    "the last layer": (ZeroFFN(layers="last"), AblateAttention(layers="last")),
}


@pytest.mark.parametrize("operations", TAKEN.values(), ids=TAKEN)
def test_what_does_not_contradict_is_taken(
    model: VisualLM, batch: Batch, operations: tuple[Any, ...]
) -> None:
    assert Plan(*operations).compile(model, batch)
    assert Plan(*operations).compile(model, batch, Pass("generation"))


@pytest.mark.parametrize(
    "operations",
    [
        (InjectTokens(layer=2), PatchTokens(source=1, target=3)),
        (PatchTokens(source=2, target=3), InjectTokens(layer=2)),
    ],
)
def test_states_are_not_read_where_their_tokens_are_not(
    model: VisualLM, batch: Batch, operations: Any
) -> None:
    with pytest.raises(InputError, match="reads states") as refused:
        Plan(*operations).compile(model, batch)
    assert "operations.0" in str(refused.value)
    assert "operations.1" in str(refused.value)


def test_phases_are_kept_apart(model: VisualLM, batch: Batch) -> None:
    """What happens to generated tokens is not undone by what happens to the prompt."""
    write = PatchTokens(source=0, target=2, tokens="text")
    during = Pass("generation")
    decode = ZeroFFN(layers=1, tokens="text", phase="decode")
    assert Plan(decode, write).compile(model, batch, during)
    both = PatchTokens(source=0, target=2, tokens="text", phase="all")
    for kind in (during, Pass("scoring", 2)):
        with pytest.raises(InputError, match=r"operations\.0.* would change nothing in layer 1"):
            Plan(decode, both).compile(model, batch, kind)


class Foreign(Operation):
    """An operation of somebody else's, as far as the check knows it."""

    op: Literal["foreign"] = "foreign"

    def lower(self, target: Target) -> list[Any]:
        return []

    def describe(self, phrases: Phrases) -> str:
        return ""


def test_steps_nobody_here_knows_change_what_they_find_and_overwrite_nothing(
    model: VisualLM, batch: Batch
) -> None:
    target = Target(model, batch, Pass("forward"))
    entry, ffn = Site(2, "entry"), Site(1, "ffn")

    def steps(kind: Any, site: Site = entry, **more: Any) -> list[Any]:
        return [kind(site=site, **more, **place) for place in ZeroFFN().places(target, 2)]

    def check(*lowered: list[Any]) -> None:
        check_lowered([Foreign() for _ in lowered], lowered, target)

    noise = {"seeds": torch.zeros(1), "stride": 1}
    check(steps(Write), steps(Scale))
    check(steps(Scale), steps(Noise, **noise))
    check(steps(Zero, ffn), steps(Scale))
    with pytest.raises(InputError, match=r"operations\.0.*operations\.1"):
        check(steps(Scale), steps(Write))
    with pytest.raises(InputError, match=r"operations\.0.*operations\.1"):
        check(steps(Zero, ffn), steps(Write, ffn))
    with pytest.raises(InputError, match=r"operations\.0.*operations\.1"):
        check(steps(Write, ffn), steps(Zero, ffn))
    check(steps(Zero, ffn), steps(Zero, ffn))
    read = steps(Read, ffn, slot="k")
    later = steps(Write, Site(2, "ffn"), slot="k")
    check(steps(Scale, ffn), read + later, steps(Zero, ffn))
    with pytest.raises(InputError, match=r"operations\.0"):
        check(steps(Scale, ffn), later, steps(Zero, ffn))
