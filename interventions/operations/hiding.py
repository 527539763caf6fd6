"""The steps that hide keys from queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...lens.errors import InputError
from ...lens.selectors.selector_types import Selection, Selector
from ..layers_and_heads.heads import HeadNumbers
from ..layers_and_heads.layers import ALL, Layers
from ..program.site import Site
from ..program.steps import Hide
from .operation import Operation, TokenOperation
from .target import Target


def hide(
    operation: Operation,
    target: Target,
    layers: Sequence[int],
    queries: Selection,
    keys: Selection,
    heads: HeadNumbers | None = None,
) -> list[Hide]:
    """Steps that hide keys from queries in some layers, in some heads or all."""
    pairs: dict[str, Any] = {
        "queries": torch.as_tensor(queries.prompt),
        "later_queries": torch.as_tensor(queries.generated),
        "keys": torch.as_tensor(keys.prompt),
        "later_keys": torch.as_tensor(keys.generated),
    }
    by, behind = repr(operation), target.during.continuation
    scoring = target.during.kind == "scoring" and queries.generated.any()
    steps = []
    for layer in layers:
        target.check_attention("mask", layer, operation)
        site, some = Site(layer, "mixing"), target.heads(operation, layer, heads)
        if queries.prompt.any() or scoring:
            steps.append(Hide(site=site, when="prefill", by=by, behind=behind, **pairs, **some))
        if target.during.kind == "generation" and queries.generated.any():
            steps.append(Hide(site=site, when="decode", by=by, behind=behind, **pairs, **some))
    return steps


def attending_layers(layers: Layers, target: Target) -> tuple[int, ...]:
    """The layers that are named; of all layers those that mix tokens."""
    chosen = layers.indices(target.model.n_layers)
    if layers != ALL:
        return chosen
    kinds = target.model.anatomy.mixer_kinds
    return tuple(layer for layer in chosen if kinds[layer] != "none")


def chosen_by_layer(
    selectors: Sequence[Selector], layers: Layers, target: Target
) -> Iterator[tuple[tuple[int, ...], list[Selection]]]:
    """What selectors mean, with the layers in which they mean it: all at once unless it differs.

    Layers in which the same tokens are meant have their masks in common.
    """
    chosen = attending_layers(layers, target)
    alike = not any(selector.differs_by_layer(target.batch) for selector in selectors)
    for group in [chosen] if alike else [(layer,) for layer in chosen]:
        first = next(iter(group), None)
        yield group, [selector.select(target.batch, first) for selector in selectors]


def some_pair(
    operation: Operation, queries: Selection, keys: Selection, target: Target, what: str
) -> bool:
    """Whether some query that is meant could see some key; refused if not, unless that is allowed.

    ``queries`` are those that the operation's phase leaves, and ``what`` is done to pairs.
    """
    later = queries.generated & (keys.prompt.any(1) | keys.generated)
    if target.both_ways:
        found = bool((queries.prompt.any(1) & keys.prompt.any(1)).any())
    else:
        behind = np.logical_or.accumulate(keys.prompt, axis=1)
        found = bool((queries.prompt & behind).any())
    found |= target.during.kind != "forward" and bool(later.any())
    if not (found or operation.allow_empty):
        given = operation.selectors()
        raise InputError(
            f"{operation!r}: no token of {str(given['queries'])!r} in phase {operation.phase!r} "
            f"can see a token of {str(given['keys'])!r}, so nothing is {what} "
            "(allow_empty=True accepts that)"
        )
    return found


def selected(operation: TokenOperation, target: Target) -> NDArray[np.bool_]:
    """The prompt tokens that are meant, ``[sample, token]``; InputError if there are none."""
    found = target.selected(operation.tokens, operation.choosing_layer)
    if not found.any() and not operation.allow_empty:
        raise InputError(
            f"{operation!r}: no token of the prompt matches {str(operation.tokens)!r}; it would do "
            "nothing (allow_empty=True accepts that)"
        )
    return found


def hide_from_all(operation: TokenOperation, target: Target, layers: range) -> list[Hide]:
    """Steps that hide an operation's prompt tokens from all other tokens in some layers."""
    hidden = selected(operation, target)
    if not hidden.any():
        return []
    later = np.full(len(hidden), target.during.kind != "forward")
    others = Selection(target.real & ~hidden, later)
    kinds = target.model.anatomy.mixer_kinds
    mixing = [layer for layer in layers if kinds[layer] != "none"]
    return hide(operation, target, mixing, others, Selection(hidden, np.zeros_like(later)))
