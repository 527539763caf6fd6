"""Programs of several conditions on one batch, joined into one program on a stacked batch.

The hazard: in the stacked batch every condition has a block of rows of its own, and a step that
kept the rows, the masks or the store keys of its single run would change, without a sound, what
another condition returns. So a step is taken apart key by key, and a key that is not known here is
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...lens.anatomy import Anatomy
from ...lens.errors import Unsupported
from ...lens.opening.wrapping import envoy_path
from ..operations.target import Step

# Steps on the sequence as a whole: their conditions have a pass of their own.
WHOLE = frozenset(("remove", "cut"))
# One entry per selected token, wherever that token's row is.
PER_TOKEN = frozenset(("columns", "values", "seeds", "group", "from_group"))
# One row per sample.
PER_SAMPLE = frozenset(("queries", "keys", "later_queries", "later_keys", "others"))
# Steps that do to some rows what they do to others, so that one can serve several conditions;
# those that leave something to the next step on their module stay where they are.
ALIKE = frozenset(("zero", "block", "zero-weights"))


def stands_alone(program: Sequence[Step]) -> bool:
    """Whether a program changes the sequence's length, which others could not share."""
    return any(step["do"] in WHOLE for step in program)


def first_layer(program: Sequence[Step], anatomy: Anatomy) -> int:
    """The first layer that a program reads or changes anything in; ``n_layers`` behind the last.

    Returns:
        -1 where it reaches something in front of the decoder.
    """
    return min((_layer_of(step, anatomy) for step in program), default=anatomy.n_layers)


def joined(programs: Sequence[Sequence[Step]], samples: int) -> list[Step]:
    """One program for the batch repeated once for every condition.

    Args:
        programs: One per condition, each resolved on the single batch, without steps on the whole
            sequence.
        samples: Rows of the single batch.

    Raises:
        Unsupported: A step holds something of which it is not known how it goes with the rows.
    """
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
    moved: Step = {}
    for name, value in step.items():
        if name == "samples":
            moved[name] = samples * blocks
        elif name == "key":
            moved[name] = f"{block}.{value}"
        elif name == "rows":
            moved[name] = value + block * samples
        elif name in PER_SAMPLE:
            whole = value.new_zeros(samples * blocks, *value.shape[1:])
            whole[block * samples : (block + 1) * samples] = value
            moved[name] = whole
        elif name in PER_TOKEN or _is_plain(value):
            moved[name] = value
        else:
            raise Unsupported(
                f"the step {step['do']!r} at {step.get('path')} cannot share a pass with other "
                f"conditions: it is not known how its {name!r} goes with the rows; use run() or "
                "score() for this plan"
            )
    return moved


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _alike(one: Step, other: Step) -> bool:
    """Whether two steps differ in nothing but the rows they act on, and need no neighbours."""
    bound = one.get("takes") or one.get("leaves")
    return one["do"] in ALIKE and not bound and _settings(one) == _settings(other)


def _settings(step: Step) -> dict[str, Any]:
    return {
        name: "tensor" if isinstance(value, Tensor) else value
        for name, value in step.items()
        if name != "by"
    }


def _merged(one: Step, other: Step) -> Step:
    merged = dict(one)
    for name, value in one.items():
        if name in PER_SAMPLE:
            merged[name] = value | other[name]
        elif isinstance(value, Tensor):
            merged[name] = torch.cat([value, other[name]])
    return merged


def _layer_of(step: Step, anatomy: Anatomy) -> int:
    paths = [part["path"] for part in (step, *step.get("layers", ())) if "path" in part]
    return min(_place_of(path, anatomy) for path in paths)


def _place_of(path: str, anatomy: Anatomy) -> int:
    for layer, prefix in enumerate(map(envoy_path, anatomy.layers)):
        if path == prefix or path.startswith(f"{prefix}."):
            return layer
    if path == envoy_path(anatomy.norm):
        return anatomy.n_layers
    return 0 if path == envoy_path(anatomy.decoder) else -1
