"""The nnsight engine: a program's steps become edits stored on a shallow copy of the model.

One stored edit per step, so steps need not be sorted into the order in which the model reaches
their sites; at one site they act in the order of the plan, and before the body of the trace.
"""

from __future__ import annotations

from typing import Any

import nnsight
from nnsight.intervention.iterator import Iterations

from ..operations.target import Step
from .payload.attention_masks import block
from .payload.attention_weights import zero_weights
from .payload.carry_out import carry_out_when
from .payload.drop_before_decoder import remove
from .payload.drop_between_layers import cut
from .payload.shorter_tensors import taken
from .payload.written_values import noise

nnsight.register(cut.__module__)
nnsight.register(block.__module__)
nnsight.register(remove.__module__)
nnsight.register(taken.__module__)
nnsight.register(noise.__module__)
nnsight.register(zero_weights.__module__)
nnsight.register(carry_out_when.__module__)


def store_edits(envoy: Any, program: list[Step]) -> Any:
    """A copy of the nnsight model on which every later trace carries out the program."""
    edited = envoy._shallow_copy()
    store: dict[str, Any] = {}
    for step in program:
        _store_edit(edited, store, step, Iterations())
    return edited


def _store_edit(edited: Any, store: dict[str, Any], step: Step, decoding: Any) -> None:
    # A remote run pickles what this block names: a function goes as its source, but a module
    # would go with its spec and loader, which a sandbox refuses.
    with edited.edit(inplace=True):
        carry_out_when(edited, store, step, decoding)
