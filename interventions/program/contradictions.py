"""Operations that cannot all be meant: what one says is undone by another.

The hazard: a plan whose second operation overwrites what the first one wrote runs without a murmur,
and its result is reported under the first one's name. Every operation has to leave its mark in the
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

from collections.abc import Sequence

import numpy as np

from ...lens.errors import InputError
from ..operations.operation import Operation
from ..operations.target import Step, Target
from ..selectors.layers import layer_indices
from .flow import ENTRY, HIDE, OVERWRITE, Mark, Program

# Layers of an unknown model: more than any has.
SOME = 1 << 20
# (operation, layer, whether it is a mask): what is used or lost as one.
_Unit = tuple[int, int, bool]


def check_declared(operations: Sequence[Operation]) -> None:
    """Refuse operations whose contradiction shows without a model: entering and leaving.

    Raises:
        InputError: The same tokens enter or leave twice, or leave before they enter.
    """
    moving = [(n, op, layers) for n, op in enumerate(operations) if (layers := op.away(SOME))]
    for index, (number, operation, mine) in enumerate(moving):
        for other, second, theirs in moving[index + 1 :]:
            if getattr(operation, "tokens", None) != getattr(second, "tokens", None):
                continue
            leaving, entering = mine.stop == SOME, theirs.stop == SOME
            if leaving and entering:
                reason = "the same tokens leave twice"
            elif not leaving and not entering:
                reason = "the same tokens enter twice"
            elif max(mine.start, theirs.start) <= min(mine.stop, theirs.stop):
                reason = "these tokens leave before they have entered, so nobody ever sees them"
            else:
                continue
            raise InputError(
                f"operations.{number} and operations.{other} contradict each other: {reason} "
                f"({operation!r}, {second!r})"
            )


def check_program(
    operations: Sequence[Operation], lowered: Sequence[Sequence[Step]], target: Target
) -> None:
    """Refuse operations that others undo on this model and batch.

    Args:
        operations: The plan's operations.
        lowered: Per operation its steps.
        target: Model, batch and kind of pass.

    Raises:
        InputError: With the paths of both.
    """
    if len(operations) < 2:
        return
    program = Program.of(operations, lowered, target)
    program.follow(operations)
    if (lost := _first_lost(operations, program)) is not None:
        number, layers = lost
        causes = _causes(operations, program, number, layers)
        raise InputError(_told(operations, program, number, layers, causes))
    _check_reads(operations, program)


def _units(program: Program) -> dict[_Unit, bool]:
    """For each operation and layer whether something of it is used."""
    units: dict[_Unit, bool] = {}
    for mark in program.marks:
        if mark.step["do"] != "read":
            unit = (mark.operation, mark.layer, mark.step["do"] in HIDE)
            units[unit] = units.get(unit, False) or mark.used
    return units


def _first_lost(
    operations: Sequence[Operation], program: Program
) -> tuple[int, tuple[int, ...]] | None:
    """The first operation that leaves no mark where it should, and in which layers."""
    units, n_layers = _units(program), program.target.model.n_layers
    for number, operation in enumerate(operations):
        mine = {unit: used for unit, used in units.items() if unit[0] == number}
        lost = [unit for unit, used in mine.items() if not used]
        layers = getattr(operation, "layers", "all")
        named = len(layer_indices(layers, n_layers)) < n_layers
        # What a single layer says, an edit of states, stands for itself.
        alone = [unit for unit in lost if not unit[2] and not hasattr(operation, "layers")]
        if lost and (named or len(lost) == len(mine)):
            return number, tuple(sorted({layer for _, layer, _ in lost}))
        if alone:
            return number, tuple(sorted({layer for _, layer, _ in alone}))
    return None


def _causes(
    operations: Sequence[Operation], program: Program, number: int, layers: tuple[int, ...]
) -> list[int]:
    """Operations without any one of which more would be left; all others if it takes several."""
    found = []
    for other in range(len(operations)):
        if other == number:
            continue
        rest = program.without({other})
        rest.follow(operations)
        units = _units(rest)
        if any(units[unit] for unit in units if unit[0] == number and unit[1] in layers):
            found.append(other)
    return found or [other for other in range(len(operations)) if other != number]


def _told(
    operations: Sequence[Operation],
    program: Program,
    number: int,
    layers: tuple[int, ...],
    causes: list[int],
) -> str:
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"
    n_layers = program.target.model.n_layers
    others = " and ".join(f"operations.{other} ({operations[other]!r})" for other in causes)
    leaving = any(operations[cause].away(n_layers) for cause in causes)
    what = "nobody sees its tokens then" if leaving else "what it does there is overwritten"
    return (
        f"operations.{number} ({operations[number]!r}) would change nothing in {where}: {what}, "
        f"because of {others}. Leave one of them out, name other layers or tokens, or, where both "
        "act at one place, give them in the other order"
    )


def _check_reads(operations: Sequence[Operation], program: Program) -> None:
    """Refuse to read states of tokens where they are not there.

    Raises:
        InputError: All tokens of a read are away in the layer whose outcome is read, and nobody
            has written them since.
    """
    if not program.absences:
        return
    written: dict[int, list[Mark]] = {}
    for mark in program.marks:
        if mark.part == ENTRY and mark.step["do"] in OVERWRITE:
            written.setdefault(mark.layer, []).append(mark)
        if mark.step["do"] != "read" or not mark.tokens.any():
            continue
        before = mark.layer - 1 if mark.part == ENTRY else mark.layer
        gone = program.away(before, mark.operation) if before >= 0 else np.zeros_like(mark.tokens)
        for writing in written.get(mark.layer, []):
            gone &= ~writing.tokens
        if (mark.tokens & ~gone).any():
            continue
        others = [
            f"operations.{absence.operation} ({operations[absence.operation]!r})"
            for absence in program.absences
            if before in absence.layers and absence.operation != mark.operation
        ]
        raise InputError(
            f"operations.{mark.operation} ({operations[mark.operation]!r}) reads states behind "
            f"layer {before}, where its tokens are not there for anybody, because of "
            f"{' and '.join(others)}"
        )
