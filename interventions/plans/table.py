"""A plan as a table, and the tokens that its operations mean in one batch.

A random control that is not written down cannot be checked. What was drawn is a
function of the batch and the plan, so it is listed here and not kept anywhere else.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ...lens.inputs.batch import Batch
from ..operations.operation import Operation

COLUMNS = ("step", "operation", "tokens", "layers", "phase", "settings")
# Settings that say where an operation acts; their columns are of their own.
PLACES = ("layers", "layer", "source", "target")


def plan_frame(operations: Sequence[Operation]) -> pd.DataFrame:
    """One row per operation, columns :data:`COLUMNS`; steps are counted as ``operations.0`` is."""
    rows = [_row(number, operation) for number, operation in enumerate(operations)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def plan_text(operations: Sequence[Operation]) -> str:
    """The table as plain text."""
    if not operations:
        return "a plan that changes nothing"
    frame = plan_frame(operations).astype(str)
    widths = {name: max(len(cell) for cell in (name, *frame[name])) for name in COLUMNS}
    left = {name: f"{{:<{width}}}".format for name, width in widths.items()}
    text = frame.to_string(index=False, justify="left", formatters=left)
    return "\n".join(line.rstrip() for line in text.splitlines())


def plan_html(operations: Sequence[Operation]) -> str:
    """The table for a notebook."""
    if not operations:
        return f"<p>{html.escape(plan_text(operations))}</p>"
    return str(plan_frame(operations).to_html(index=False, border=0))


def chosen(operations: Sequence[Operation], batch: Batch) -> pd.DataFrame:
    """One row per operation, role and token that it means; see :meth:`.plan.Plan.chosen`."""
    parts = [
        pd.DataFrame(
            {
                "sample": pd.Series(samples, dtype="int64"),
                "position": pd.array(positions, dtype="Int64"),
                "step": number,
                "operation": operation.op,
                "role": role,
            }
        )
        for number, operation in enumerate(operations)
        for role, samples, positions in _meant(operation, batch)
    ]
    columns = ["sample", "position", "step", "operation", "role"]
    if not parts:
        empty = {"sample": "int64", "position": "Int64", "step": "int64"}
        return pd.DataFrame({name: pd.Series(dtype=empty.get(name, "str")) for name in columns})
    return pd.concat(parts, ignore_index=True)[columns]


def _meant(operation: Operation, batch: Batch) -> list[tuple[str, list[int], list[int | None]]]:
    """Per role the (sample, position) pairs; generated tokens have no position yet."""
    found = []
    for role, selection in operation.selections(batch).items():
        samples, positions = selection.prompt.nonzero()
        later = selection.generated.nonzero()[0]
        places = [*positions.tolist(), *[None] * len(later)]
        found.append((role, [*samples.tolist(), *later.tolist()], places))
    return found


def _row(number: int, operation: Operation) -> dict[str, Any]:
    given = operation.model_dump(exclude_defaults=True)
    roles = {name: str(selector) for name, selector in operation.selectors().items()}
    tokens = list(roles.values())
    if list(roles) != ["tokens"]:
        tokens = [f"{name}: {text}" for name, text in roles.items()]
    apart = {"op", "phase", *operation.roles(), *PLACES}
    return {
        "step": number,
        "operation": operation.op,
        "tokens": "; ".join(tokens),
        "layers": operation.where(),
        "phase": operation.phase,
        "settings": ", ".join(f"{n}={v}" for n, v in given.items() if n not in apart),
    }
