"""The door to patching: states are written by the operation that writes states, and no other way.

Operations are in the room above, and no lens imports these: the operation is found by the name of
its module when a lens needs it, as the viewer is.
"""

from __future__ import annotations

from importlib import import_module

from ..runs.plan_protocol import Intervention
from ..runs.run import Run

PATCHING = "embedlens.interventions"


def written_states(states: Run, layer: int, tokens: str) -> Intervention:
    """The plan that writes states before a layer: those of a run, at the tokens of that name.

    Args:
        states: Holds them at these tokens of its own batch, in order; one sample, or as many as
            the batch that the plan is for.
        layer: Before which they are written.
        tokens: Of the batch that the plan is for, and of the run's.
    """
    touch = import_module(PATCHING)
    patch = touch.PatchTokens(tokens=tokens, source=layer, target=layer, states="read")
    made: Intervention = touch.Plan(patch).given(read=states)
    return made
