"""Operations that cannot all be meant: what one says is undone by another.

A plan whose second operation overwrites what the first one wrote would run without a murmur, and
its result be reported under the first one's name. So every operation has to leave its mark in the
states that somebody reads; if it does not, and would without another one, both are named.

What counts, and where the line is:

- An operation that names some layers has to act in each of them; one on all layers, which means
  wherever the tokens are, in one at least.
- It has to act on one token at least. Where operations overlap in some tokens only, the later one
  has the last word there, and the earlier one keeps the rest.
- A later operation may change what an earlier one wrote (scaling what was replaced). What is made
  zero twice, hidden twice, or hidden from tokens that gather nothing, is as both operations say.
- Tokens cannot enter or leave twice, and nothing can be done to them where they are not.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...lens.errors import InputError
from ..operations.operation import Operation
from .scope import Scope
from .states_in_use import Flow, Mark
from .steps import Mask, PairStep, Step

# Layers of an unknown model: more than any has.
SOME = 1 << 20
# (operation, layer, whether it is a mask): what is used or lost as one.
_Unit = tuple[int, int, bool]


def check_declared(operations: Sequence[Operation]) -> None:
    """Refuse operations whose contradiction shows without a model: entering and leaving."""
    moving = [(n, op, layers) for n, op in enumerate(operations) if (layers := op.absent(SOME))]
    for index, (number, operation, mine) in enumerate(moving):
        for other, second, theirs in moving[index + 1 :]:
            if operation.selectors().get("tokens") != second.selectors().get("tokens"):
                continue
            dropped, dropped_too = mine.stop == SOME, theirs.stop == SOME
            if dropped and dropped_too:
                reason = "the same tokens leave twice"
            elif not (dropped or dropped_too):
                reason = "the same tokens enter twice"
            elif max(mine.start, theirs.start) <= min(mine.stop, theirs.stop):
                reason = "these tokens leave before they have entered, so nobody ever sees them"
            else:
                continue
            raise InputError(
                f"operations.{number} and operations.{other} contradict each other: {reason} "
                f"({operation!r}, {second!r})"
            )


def check_lowered(
    operations: Sequence[Operation], lowered: Sequence[Sequence[Step]], scope: Scope
) -> None:
    """Refuse operations that others undo on this model and batch."""
    if len(operations) < 2:
        return
    flow = Flow.of(operations, lowered, scope)
    flow.follow(marks_only=True)
    if (lost := _first_lost(operations, flow)) is not None:
        number, layers = lost
        causes = _causes(operations, flow, number, layers)
        raise InputError(_told(operations, flow, number, layers, causes))
    _check_reads(operations, flow)


@dataclass(frozen=True, eq=False)
class Unknown:
    """Tokens of an operation that are not known yet: so many of each sample, among some."""

    name: Hashable  # alike where the same tokens are meant
    among: Mask  # ``[sample, token]``
    counts: NDArray[np.int64]  # ``[sample]``


def surely_kept(
    operations: Sequence[Operation],
    lowered: Sequence[Sequence[Step]],
    scope: Scope,
    unknown: Mapping[int, Unknown],
) -> bool:
    """Whether nothing is undone whichever tokens some of the operations turn out to mean.

    A token that is there behind the last layer is needed, so that others undo what is done to it
    only at this very token.

    Args:
        operations: A plan's operations.
        lowered: The steps of each, for all tokens among which the unknown ones are.
        scope: What they were lowered for.
        unknown: By the operations' numbers, whose tokens are not known.
    """
    if len(operations) < 2:
        return True
    flow = Flow.of(operations, lowered, scope)
    if flow.absences and any(mark.step.reads for mark in flow.marks):
        return False
    # Where they mean all that they could, others lose most.
    flow.follow(marks_only=True)
    kept = [mark.used and _kept(mark, unknown.get(mark.operation), ()) for mark in flow.marks]
    # Or without them, and then they take as much as they can.
    for number in range(len(operations)):
        mine = unknown.get(number)
        others = {n: one for n, one in unknown.items() if mine is None or one.name != mine.name}
        flow.without(others.keys()).follow(marks_only=True)
        for index, mark in enumerate(flow.marks):
            if mark.operation == number:
                kept[index] |= mark.used and _kept(mark, mine, others.values())
    for index, mark in enumerate(flow.marks):
        mark.used = kept[index]
    return _first_lost(operations, flow) is None


def _kept(mark: Mark, mine: Unknown | None, others: Collection[Unknown]) -> bool:
    """Whether something of a mark is left if others take as much of it as they can."""
    assert mark.acting is not None
    step, acting = mark.step, mark.acting
    meant = step.hidden() if isinstance(step, PairStep) else mark.tokens
    left = acting.sum(1)
    if mine is not None:
        # All that are meant might be among those where it makes no difference.
        left = mine.counts - (meant & ~acting).sum(1)
    sides = [left - _taken(acting, others)]
    if isinstance(step, PairStep):
        sides.append(mark.tokens.sum(1) - _taken(mark.tokens, others))
    return bool(np.all([side > 0 for side in sides], axis=0).any())


def _taken(tokens: Mask, others: Collection[Unknown]) -> NDArray[np.int64]:
    """How many of some tokens others could take at most, ``[sample]``."""
    taken = np.zeros(len(tokens), dtype=np.int64)
    for other in others:
        taken += np.minimum(other.counts, (tokens[:, :-1] & other.among).sum(1))
    return taken


def _units(flow: Flow) -> dict[_Unit, bool]:
    """For each operation and layer whether something of it is used."""
    units: dict[_Unit, bool] = {}
    for mark in flow.marks:
        if not mark.step.reads:
            unit = (mark.operation, mark.step.site.layer, mark.step.hides)
            units[unit] = units.get(unit, False) or mark.used
    return units


def _first_lost(operations: Sequence[Operation], flow: Flow) -> tuple[int, tuple[int, ...]] | None:
    """The first operation that leaves no mark where it should, and in which layers."""
    units, n_layers = _units(flow), flow.scope.model.n_layers
    for number, operation in enumerate(operations):
        mine = {unit: used for unit, used in units.items() if unit[0] == number}
        lost = [unit for unit, used in mine.items() if not used]
        layers = operation.named_layers
        named = layers is not None and len(layers.indices(n_layers)) < n_layers
        # What a single layer says, an edit of states, stands for itself.
        alone = [unit for unit in lost if not unit[2] and layers is None]
        if lost and (named or len(lost) == len(mine)):
            return number, tuple(sorted({layer for _, layer, _ in lost}))
        if alone:
            return number, tuple(sorted({layer for _, layer, _ in alone}))
    return None


def _causes(
    operations: Sequence[Operation], flow: Flow, number: int, layers: tuple[int, ...]
) -> list[int]:
    """Operations without any one of which more would be left; all others if it takes several."""
    found = []
    for other in range(len(operations)):
        if other == number:
            continue
        rest = flow.without({other})
        rest.follow(marks_only=True)
        units = _units(rest)
        if any(units[unit] for unit in units if unit[0] == number and unit[1] in layers):
            found.append(other)
    return found or [other for other in range(len(operations)) if other != number]


def _told(
    operations: Sequence[Operation],
    flow: Flow,
    number: int,
    layers: tuple[int, ...],
    causes: list[int],
) -> str:
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    n_layers = flow.scope.model.n_layers
    others = " and ".join(f"operations.{other} ({operations[other]!r})" for other in causes)
    unseen = any(operations[cause].absent(n_layers) for cause in causes)
    what = "nobody sees its tokens then" if unseen else "what it does there is overwritten"
    return (
        f"operations.{number} ({operations[number]!r}) would change nothing in {where}: {what}, "
        f"because of {others}. Leave one of them out, name other layers or tokens, or, where both "
        "act at one place, give them in the other order"
    )


def _check_reads(operations: Sequence[Operation], flow: Flow) -> None:
    """Refuse to read states of tokens where they are not there.

    That is, all tokens of a read are absent in the layer whose outcome is read, and nobody has
    written them since.
    """
    if not flow.absences:
        return
    written: dict[int, list[Mark]] = {}
    for mark in flow.marks:
        step, site = mark.step, mark.step.site
        if site.part == "entry" and step.overwrites:
            written.setdefault(site.layer, []).append(mark)
        if not step.reads or not mark.tokens.any():
            continue
        before = site.layer - 1 if site.part == "entry" else site.layer
        missing: Mask = mark.tokens & False
        if before >= 0:
            missing = flow.absent(before, mark.operation)
        for writing in written.get(site.layer, []):
            missing &= ~writing.tokens
        if (mark.tokens & ~missing).any():
            continue
        others = [
            f"operations.{absence.operation} ({operations[absence.operation]!r})"
            for absence in flow.absences
            if before in absence.layers and absence.operation != mark.operation
        ]
        raise InputError(
            f"operations.{mark.operation} ({operations[mark.operation]!r}) reads states behind "
            f"layer {before}, where its tokens are not there for anybody, because of "
            f"{' and '.join(others)}"
        )
