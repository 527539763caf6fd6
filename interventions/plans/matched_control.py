"""The matched control of a plan: the same operations on as many tokens drawn at random."""

from __future__ import annotations

from collections.abc import Sequence

from ...lens.errors import InputError
from ...lens.selectors.selector_types import Random, Selector
from ..operations import Operation


def matched_control(
    operations: Sequence[Operation], seed: int, within: Selector
) -> list[Operation]:
    """The operations with ``random(like=…, within=…, seed=…)`` in place of their tokens."""
    return [_drawn(operation, seed, within) for operation in operations]


def _drawn(operation: Operation, seed: int, within: Selector) -> Operation:
    given = operation.selectors()
    # Of a pair of queries and keys it is the keys that something is taken from.
    role = next((role for role in ("tokens", "keys") if role in given), None)
    if role is None:
        raise InputError(f"{operation!r} names no tokens, so that no others can be drawn for them")
    if given[role] == within:
        raise InputError(
            f"{operation!r} means all of {str(within)!r} already, so that no others can be drawn: "
            "name a larger set as within"
        )
    said = {name: getattr(operation, name) for name in operation.model_fields_set}
    return type(operation)(**{**said, role: Random(given[role], within, seed)})
