"""A condition: one compiled plan on the batch, and what it can share with others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError, Unsupported
from ...inputs.batch import Batch
from ..captures import lowest_layer
from ..forward import Request
from ..plan_protocol import Intervention, Program, Together


@dataclass(frozen=True, eq=False)
class Condition:
    """One plan on the batch.

    Attributes:
        index: Its place among the plans.
        program: What the plan does on the batch; None leaves the model untouched.
        first: First layer that it touches, or in which something is read.
        own_pass: Whether no other condition fits into its pass.
        shares_nothing: Whether it changes what lies in front of the decoder, too.
    """

    index: int
    program: Program | None
    first: int
    own_pass: bool = False
    shares_nothing: bool = False


def compile_conditions(
    model: Any, batch: Batch, plans: Sequence[Intervention | None], request: Request
) -> list[Condition]:
    """The conditions of several plans.

    Raises:
        InputError, Unsupported: A plan that cannot be carried out, named by its number.
    """
    model.anatomy.check_ids(request.inputs, model.tokenizer)
    lowest = lowest_layer(request.sites, model.n_layers)
    during = replace(request.during, together=Together(tuple(plans)))
    conditions = []
    for index, plan in enumerate(plans):
        try:
            program = None if plan is None else plan.compile(model, batch, during)
        except (InputError, Unsupported) as error:
            if len(plans) == 1:
                raise
            raise type(error)(f"plans.{index}: {error}") from None
        if program:
            early = program.first_layer < 0
            first = max(min(program.first_layer, lowest), 0)
            own_pass = program.changes_length or early
            conditions.append(Condition(index, program, first, own_pass, shares_nothing=early))
        else:
            conditions.append(Condition(index, None, lowest))
    return conditions
