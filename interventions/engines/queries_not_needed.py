"""Which attention need not be computed for the queries of tokens where what it adds is zeroed.

Keys and values of all tokens are there for the others. It is done where nobody can tell: no other
step acts inside that layer's attention, no states are read by their place in the pass and no
weights, nothing is written (`generate`), there is no hook of the owner's, and the attention has the
plain form: one module ``q_proj``, one call of a function of transformers (sdpa or eager), one
matrix behind it. That nothing else in it mixes queries no name tells: it is tried on the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import nnsight
import torch
from torch import Tensor, nn

from ...lens.anatomy.attention_call import call_in
from ...lens.anatomy.heads_and_neurons import attention_of, heads_of
from ...lens.anatomy.row_wise import is_row_wise
from ...lens.errors import Unsupported
from ...lens.opening.present_state import is_hooked, modules_of, owners_hooks, state_of
from ...lens.opening.wrapping import envoy_path, module_path
from ...lens.runs.remote import WEIGHTS_ON_SERVER
from ...lens.runs.tracing import trace_forward
from ...lens.tolerances import ROW_WISE
from ..program.scope import Scope, Subject
from ..program.steps import Choose, Step, Zero
from .mask_kinds import mask_kind
from .payload.attention_without_queries import outputs_of, outputs_without

nnsight.register(outputs_of.__module__)

QUERY = "q_proj"
# A call for some queries takes a mask where a kernel would have known its own, which computes half.
SHARE = 0.5
# Products that a layer has to save: to look at the model, and to catch the call, takes as long as
# some ten millions of them on one core.
WORTH = 50e6
# Tokens of the trial.
TRIED = 24

_TRIED: WeakKeyDictionary[nn.Module, tuple[Hashable, bool]] = WeakKeyDictionary()


def queries_not_needed(steps: Sequence[Step], scope: Scope) -> frozenset[int]:
    """The places among the steps of those whose tokens' queries can be left out of attention."""
    found = {
        number: places_of_queries(scope.model, step.site.layer)
        for number, step in enumerate(steps)
        if _is_alone(step, steps, scope) and _has_plain_form(scope, step.site.layer)
    }
    works = _work(scope, list(found.values())) if found else []
    return frozenset(number for number, work in zip(found, works, strict=True) if work)


def places_of_queries(model: Subject, layer: int) -> dict[str, Any]:
    """Where a layer makes its queries, where it calls its attention function, and its way back.

    Raises:
        Unsupported: It has another form.
    """
    path = attention_of(model.anatomy, layer)
    projection = heads_of(model.hf, model.anatomy, layer).projection
    places = {"mixer": path, "query": f"{path}.{QUERY}", "projection": projection}
    named = {name: envoy_path(place) for name, place in places.items()}
    return {**mask_kind("", model, layer), "call": call_in(model, path), **named}


def _is_alone(step: Step, steps: Sequence[Step], scope: Scope) -> bool:
    """Whether a step zeroes what attention adds, at enough tokens, and nobody else acts in it."""
    during = scope.during
    if during.traced or during.positions or during.weights:
        return False
    if step.site.part != "attention" or type(step) is not Zero or step.chosen is not None:
        return False
    # Of a generation's passes weights may be asked for; and most are over one token.
    if step.columns is None or during.kind == "generation":
        return False
    tokens = step.tokens(scope.samples, scope.batch.length + during.continuation)
    if tokens[:, :-1].all(0).mean() < SHARE:
        return False
    # Queries, and the way back to the stream; scores come on top.
    if tokens.sum() * 2 * scope.model.anatomy.hidden_size**2 < WORTH:
        return False
    for other in steps:
        inside = other.site.layer == step.site.layer and other.site.part not in ("entry", "ffn")
        if isinstance(other, Choose) or other.length_after is not None:
            return False
        if inside and other is not step:
            return False
    return True


def _has_plain_form(scope: Scope, layer: int) -> bool:
    """Whether a layer's queries, its call and its way back are known, and take rows by themselves.

    Weights on a server cannot be tried.
    """
    hf, anatomy = scope.model.hf, scope.model.anatomy
    if hf in WEIGHTS_ON_SERVER:
        return False
    try:
        places = places_of_queries(scope.model, layer)
    except Unsupported:
        return False
    if anatomy.mixer.count(anatomy.mixer[layer]) > 1:
        return False
    mixer, back = (hf.get_submodule(module_path(places[n])) for n in ("mixer", "projection"))
    query = getattr(mixer, QUERY, None)
    return (
        query is not None
        and is_row_wise(hf, query, anatomy.hidden_size)
        and is_row_wise(hf, back, back.in_features)
    )


def _work(scope: Scope, places: list[dict[str, Any]]) -> list[bool]:
    """Whether each attention makes of a query what it is without others: tried once as they are.

    Models with hooks of the owner's are left as they are: who counts rows, or passes, would see.
    What watches all modules, as profilers do, watches what is known already, and no trial.
    """
    model = scope.model
    if any(map(is_hooked, modules_of(model.hf))):
        return [False] * len(places)
    mixers = [model.hf.get_submodule(module_path(one["mixer"])) for one in places]
    states = [state_of(mixer) for mixer in mixers]
    if any(_TRIED.get(m, (None,))[0] != state for m, state in zip(mixers, states, strict=True)):
        if owners_hooks(model.hf):
            return [False] * len(places)
        works = _tried(model, scope, places)
        for mixer, state, work in zip(mixers, states, works, strict=True):
            _TRIED[mixer] = state, work and state_of(mixer) == state
    return [_TRIED[mixer][1] for mixer in mixers]


@torch.no_grad()
def _tried(model: Subject, scope: Scope, places: list[dict[str, Any]]) -> list[bool]:
    """A short pass over text, with two of three queries and without them."""
    inputs = _some_text(model, scope)
    length = inputs["input_ids"].shape[1]
    left = torch.arange(length) % 3 != 1
    columns = left.nonzero()[:, 0]
    place = {"samples": 1, "rows": torch.zeros_like(columns), "columns": columns}
    steps = [{**one, **place} for one in places]
    nn_model = model.nn
    try:
        with trace_forward(nn_model, model.hf, inputs, remote=False):
            read = outputs_of(nn_model, steps)
            whole = read.save()  # type: ignore[attr-defined]
        with trace_forward(nn_model, model.hf, inputs, remote=False):
            again = outputs_without(nn_model, steps, whole)
            some = again.save()  # type: ignore[attr-defined]
    # Whatever a model raises that takes no text alone, or is not computed in this order.
    except Exception:
        return [False] * len(places)
    return [_same(a[:, ~left], b[:, ~left]) for a, b in zip(whole, some, strict=True)]


def _some_text(model: Subject, scope: Scope) -> dict[str, Tensor]:
    """Some tokens of the batch's own text as inputs."""
    inputs = scope.batch.inputs
    text = inputs["attention_mask"].bool() & ~model.anatomy.visual_mask(inputs)
    ids = inputs["input_ids"][text][:TRIED]
    ids = ids.repeat(-(-TRIED // len(ids)))[:TRIED][None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _same(whole: Tensor, some: Tensor) -> bool:
    if whole.shape != some.shape:
        return False
    return bool((whole - some).abs().max() <= ROW_WISE.of(whole.dtype) * whole.abs().max())
