"""A condition: one compiled plan on the batch, and how its output is compared."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ...errors import InputError, Unsupported
from ...inputs.batch import Batch
from ..forward import Output, Request
from ..plan_protocol import PARTS, Intervention, OneCall, Program, Touch, compiled
from ..proof_record import is_same
from .hooked_model import HookedModel
from .inside_in_hooks import readable_in_hooks


@dataclass(frozen=True, eq=False)
class Condition:
    """One plan on the batch.

    Attributes:
        index: Its place among the plans; -1 for a pass that nobody asked for.
        program: What the plan does on the batch; None leaves the model untouched.
        hooks: Whether all of its steps, and what is read in it, have a form in hooks.
    """

    index: int
    program: Program | None
    hooks: bool = True

    @cached_property
    def touches(self) -> tuple[Touch, ...]:
        """What its steps touch in the pass over the prompt."""
        return tuple(touch for touch in self.all_touches if not touch.later)

    @property
    def all_touches(self) -> tuple[Touch, ...]:
        """What its steps touch, in a generation also in later passes."""
        return () if self.program is None else self.program.touches

    @property
    def own_pass(self) -> bool:
        """Whether no other condition fits into its pass."""
        return self.program is not None and self.program.changes_length

    @property
    def in_front(self) -> bool:
        """Whether it changes what lies in front of the layers, too."""
        return any(touch.part not in PARTS for touch in self.touches)


def compile_conditions(
    model: Any, batch: Batch, plans: Sequence[Intervention | None], request: Request
) -> list[Condition]:
    """The conditions of several plans.

    Raises:
        InputError, Unsupported: A plan that cannot be carried out, named by its number.
    """
    model.anatomy.check_ids(request.inputs, model.tokenizer)
    during = replace(request.during, call=OneCall(tuple(plans)))
    readable = readable_in_hooks(model.hf, request.sites)
    conditions = []
    for index, plan in enumerate(plans):
        try:
            program = compiled(plan, model, batch, during)
        except (InputError, Unsupported) as error:
            if len(plans) == 1:
                raise
            raise type(error)(f"plans.{index}: {error}") from None
        program = program or None
        hooks = readable and (program is None or _hooks(model, program))
        conditions.append(Condition(index, program, hooks))
    return conditions


def _hooks(model: Any, program: Program) -> bool:
    try:
        program.apply(HookedModel(model.hf))
    except Unsupported:
        return False
    return True


def kind_of(model: Any, request: Request) -> Hashable:
    """What passes have in common of which one comparison can speak for the others."""
    mask, d = request.inputs["attention_mask"], model.anatomy.hidden_size
    samples, tokens = mask.shape
    shapes = [(n, t.ndim, str(t.dtype), len(t) == samples) for n, t in request.inputs.items()]
    sites = {site["key"].partition(".")[0] for site in request.sites}
    return (
        *sorted(shapes),
        *(request.during.kind, request.during.remote, request.during.continuation > 0),
        *(samples, int(tokens).bit_length(), tokens == d, bool(mask.all())),
        *(model.attn_implementation, tuple(request.arguments), *sorted(sites)),
    )


def same_output(found: Output, expected: Output, request: Request) -> bool:
    """Whether two passes returned the same but for rounding."""
    # Behind the prompt's last token there may be padding, whose logits mean nothing.
    last = -1 - request.during.continuation
    return is_same(found.logits[:, last], expected.logits[:, last]) and all(
        is_same(found.states[key], states) for key, states in expected.states.items()
    )
