"""The nnsight engine: steps become edits stored on a shallow copy of the model.

One stored edit per step, so steps need not be sorted into the order in which the model reaches
their sites; at one site they act in the order of the plan, and before the body of the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, singledispatch
from typing import Any, Literal

import nnsight
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.iterator import Iterations

from ...lens.anatomy.attention_call import call_in
from ...lens.anatomy.mixer_kinds import MASKED
from ...lens.errors import Unsupported
from ...lens.opening.wrapping import envoy_path
from ...lens.runs.entered_modules import looks_only
from ...lens.runs.inside_layers import inside_site
from ...lens.selectors.best_tokens import best
from ..program.scope import Scope, Subject
from ..program.steps import Choose, Drop, ScaleWeights, Step, ZeroWeights
from .binding import ACTIONS, Action, module_of, plain
from .engine import Engine, engine
from .ffn_rows_not_needed import ffn_rows_not_needed
from .mask_kinds import mask_kind
from .payload.attention_masks import block
from .payload.attention_weights import edit_weights
from .payload.attention_without_queries import attention_without_queries
from .payload.carry_out import zero
from .payload.chosen_tokens import choose
from .payload.drop_before_decoder import drop_before_decoder
from .payload.drop_between_layers import drop_between_layers
from .payload.ffn_without_rows import ffn_without_rows
from .payload.generation_passes import carry_out_when, follow
from .payload.shorter_tensors import taken
from .payload.written_values import noise
from .queries_not_needed import places_of_queries, queries_not_needed

for _sent in (block, edit_weights, zero, drop_before_decoder, drop_between_layers, taken, noise):
    nnsight.register(_sent.__module__)
for _more in (carry_out_when, ffn_without_rows, attention_without_queries, choose, best):
    nnsight.register(_more.__module__)
_PAYLOAD = f"{__package__}.payload."


@singledispatch
def bound(step: Step, scope: Scope) -> tuple[Action, dict[str, Any]]:
    """What is carried out for a step, and the plain dict it is given."""
    raise Unsupported(f"the step {type(step).__name__!r} at the {step.site} has no form in nnsight")


def at_module(action: Action, step: Step, scope: Scope) -> tuple[Action, dict[str, Any]]:
    """A function, and a step as the plain dict that says at which module it is carried out."""
    path = envoy_path(module_of(step.site, scope.model))
    return action, {**plain(step, scope), "path": path}


for _kind, _action in ACTIONS.items():
    bound.register(_kind, partial(at_module, _action))


@bound.register(ZeroWeights)
@bound.register(ScaleWeights)
def _(step: ZeroWeights | ScaleWeights, scope: Scope) -> tuple[Action, dict[str, Any]]:
    action, made = at_module(edit_weights, step, scope)
    call = _call_of(step.by, scope.model, step.site.layer)
    return action, {**made, "call": call, "shown": scope.during.weights}


@bound.register
def _(step: Choose, scope: Scope) -> tuple[Action, dict[str, Any]]:
    if step.queries is None:
        return at_module(choose, step, scope)
    site = inside_site(scope.model, "attention_weights", step.site.layer)
    return choose, {**plain(step, scope), **site}


@bound.register
def _(step: Drop, scope: Scope) -> tuple[Action, dict[str, Any]]:
    anatomy, first = scope.model.anatomy, step.site.layer
    if step.site.part == "decoder":
        return at_module(drop_before_decoder, step, scope)
    layers = [_layer(step.by, scope.model, layer) for layer in range(first, anatomy.n_layers)]
    return drop_between_layers, {**plain(step, scope), "layers": layers}


def _layer(by: str, model: Subject, layer: int) -> dict[str, Any]:
    """A layer's path, and how its attention takes a mask."""
    anatomy = model.anatomy
    # A layer that mixes no tokens has no use for a mask.
    idle = anatomy.mixer_kinds[layer] == "none"
    mask = {"boolean": True, "causal": True, "window": 0} if idle else mask_kind(by, model, layer)
    return {**mask, "path": envoy_path(anatomy.layers[layer]), "index": layer}


def _call_of(by: str, model: Subject, layer: int) -> str:
    """Name of the call of the attention function in the mixer's own forward."""
    path = model.anatomy.mixer[layer]
    assert path is not None
    try:
        return call_in(model, path)
    except Unsupported as reason:
        raise Unsupported(
            f"{by}: the token mixer of layer {layer} {reason}, so its weights cannot be "
            "reached: use renormalise=True"
        ) from None


@engine
class NNsight(Engine):
    """Stores a program's steps as edits on an nnsight model; remotely they travel by value."""

    chooses = True

    def hosts(self, host: Any) -> bool:
        """Nnsight models."""
        return isinstance(host, Envoy)

    def leaves_out(self, steps: Sequence[Step], scope: Scope) -> frozenset[int]:
        """Zeroed FFNs, and queries of zeroed attention, where that changes nothing else."""
        return ffn_rows_not_needed(steps, scope) | queries_not_needed(steps, scope)

    def check_attention(
        self, edit: Literal["mask", "weights"], layer: int, model: Subject, by: str
    ) -> None:
        """Masks of kinds that are understood; weights where one call computes them."""
        if edit == "mask":
            mask_kind(by, model, layer)
        else:
            _call_of(by, model, layer)

    def apply(self, steps: Sequence[Step], scope: Scope, host: Any) -> Any:
        """A copy of the nnsight model on which every later trace carries out the steps."""
        clock = clock_of(steps, scope) if scope.during.kind == "generation" else None
        left = self.leaves_out(steps, scope)
        actions = [
            _left_out(step, scope) if number in left else bound(step, scope)
            for number, step in enumerate(steps)
        ]
        return store_edits(host, actions, clock)


def _left_out(step: Step, scope: Scope) -> tuple[Action, dict[str, Any]]:
    """A function that zeroes without computing, and the dict it is given."""
    if step.site.part == "ffn":
        return at_module(ffn_without_rows, step, scope)
    action, made = at_module(attention_without_queries, step, scope)
    return action, {**made, **places_of_queries(scope.model, step.site.layer)}


def clock_of(steps: Sequence[Step], scope: Scope) -> dict[str, Any]:
    """What it takes to tell which tokens a pass of a generation is over."""
    anatomy, prompt = scope.model.anatomy, scope.batch.length
    kinds = anatomy.mixer_kinds
    # A cache is as long as that of its first layer with attention.
    first = next((i for i, kind in enumerate(kinds) if kind in MASKED), len(kinds))
    left = [s.length_after for s in steps if s.site.layer <= first]
    shortest = min([length for length in left if length is not None], default=prompt)
    return {
        "decoder": envoy_path(anatomy.decoder),
        "samples": scope.samples,
        "prompt": prompt,
        "dropped": prompt - shortest,
        "generated": any(step.when == "decode" for step in steps),
    }


def store_edits(
    envoy: Any,
    actions: Sequence[tuple[Action, dict[str, Any]]],
    clock: dict[str, Any] | None = None,
) -> Any:
    """A copy of an nnsight model that carries out functions with the dicts they are given."""
    edited = envoy._shallow_copy()
    # What is carried out for steps of somebody else's may look anywhere.
    if all(action.__module__.startswith(_PAYLOAD) for action, _ in actions):
        looks_only(edited, envoy, (clock, [step for _, step in actions]))
    store: dict[str, Any] = {}
    if clock is not None:
        _store_clock(edited, store, clock, Iterations())
    for action, step in actions:
        _store_edit(edited, store, action, step, Iterations())
    return edited


def _store_clock(edited: Any, store: dict[str, Any], clock: dict[str, Any], passes: Any) -> None:
    with edited.edit(inplace=True):
        follow(edited, store, clock, passes)


def _store_edit(
    edited: Any, store: dict[str, Any], action: Action, step: dict[str, Any], passes: Any
) -> None:
    # A remote run pickles what this block names: a function goes as its source, but a module
    # would go with its spec and loader, which a sandbox refuses.
    with edited.edit(inplace=True):
        carry_out_when(action, edited, store, step, passes)
