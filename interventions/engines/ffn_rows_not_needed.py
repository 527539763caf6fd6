"""Which zeroed FFNs need not be computed at the tokens where they are zeroed.

Only where nobody can tell: no other step of the plan reads there first, no states are read by their
place in the pass, and the module treats every token by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...lens.anatomy.row_wise import is_row_wise
from ...lens.runs.remote import WEIGHTS_ON_SERVER
from ..program.scope import Scope
from ..program.site import Site
from ..program.steps import Step, Zero


def ffn_rows_not_needed(steps: Sequence[Step], scope: Scope) -> frozenset[int]:
    """The places among the steps of those whose tokens can be left out of the module."""
    during = scope.during
    if during.traced or during.positions or scope.model.hf in WEIGHTS_ON_SERVER:
        return frozenset()
    first: dict[Site, int] = {}
    for number, step in enumerate(steps):
        first.setdefault(step.site, number)
    return frozenset(
        number
        for site, number in first.items()
        if site.part == "ffn" and type(steps[number]) is Zero and _can_leave_out(site.layer, scope)
    )


def _can_leave_out(layer: int, scope: Scope) -> bool:
    anatomy = scope.model.anatomy
    path = anatomy.ffn[layer]
    if path is None or anatomy.ffn.count(path) > 1:
        return False
    module = scope.model.hf.get_submodule(path)
    # Behind a norm that is added in their place, weights are out of reach: nothing is saved.
    weighty = any(weight.ndim > 1 for weight in module.parameters())

    def tried() -> bool:
        return is_row_wise(scope.model.hf, module, anatomy.hidden_size)

    # Of many plans in one call, during which nobody else changes the model, it is asked once.
    return weighty and scope.during.once(("row-wise", module), tried)
