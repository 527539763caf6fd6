"""Programs of several conditions on one batch, joined into one on a batch of all their rows.

Every condition has a block of rows of its own. A field that is not known to go with the rows along
some axis is refused, because a step that kept the rows, masks or slots of its single run would
change, without a sound, what another condition returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ...lens.errors import Unsupported
from .steps import Step


def stacked(programs: Sequence[Sequence[Step]], samples: int) -> list[Step]:
    """One program for the batch of ``samples`` rows repeated once for every condition."""
    made: list[Step] = []
    for block, program in enumerate(programs):
        # Later steps of a program stay behind its earlier ones; programs do not meet in any row.
        start = 0
        for step in program:
            moved = _moved(step, block, samples, len(programs))
            alike = (i for i in range(start, len(made)) if _alike(made[i], moved))
            place = next(alike, None)
            if place is None:
                made.append(moved)
                start = len(made)
            else:
                made[place] = _merged(made[place], moved)
                start = place + 1
    return made


def _moved(step: Step, block: int, samples: int, blocks: int) -> Step:
    """A step of a single batch, on one block of the stacked batch."""
    changes: dict[str, Any] = {}
    for name, along, value in _held(step):
        if along == "slot":
            changes[name] = f"{block}.{value}"
        elif along == "row":
            changes[name] = value + block * samples
        elif along == "sample":
            whole = value.new_zeros(samples * blocks, *value.shape[1:])
            whole[block * samples : (block + 1) * samples] = value
            changes[name] = whole
        elif along is None and isinstance(value, Tensor):
            raise Unsupported(
                f"the step {type(step).__name__!r} at the {step.site} cannot share a pass with "
                f"other conditions: it is not known how its {name!r} goes with the rows; use run() "
                "or score() for this plan"
            )
    return replace(step, **changes)


def _held(step: Step) -> list[tuple[str, str | None, Any]]:
    """Name, axis and value of every field that is set."""
    held = [(f.name, f.metadata.get("along"), getattr(step, f.name)) for f in fields(step)]
    return [(name, along, value) for name, along, value in held if value is not None]


def _alike(one: Step, other: Step) -> bool:
    """Whether two steps differ in nothing but the rows they act on, and need no neighbours."""
    return one.merges and type(one) is type(other) and _settings(one) == _settings(other)


def _settings(step: Step) -> dict[str, Any]:
    return {
        name: "tensor" if isinstance(value, Tensor) else value
        for name, _, value in _held(step)
        if name != "by"
    }


def _merged(one: Step, other: Step) -> Step:
    changes = {}
    for name, along, value in _held(one):
        if along == "sample":
            changes[name] = value | getattr(other, name)
        elif isinstance(value, Tensor):
            changes[name] = torch.cat([value, getattr(other, name)])
    return replace(one, **changes)
