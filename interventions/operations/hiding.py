"""The steps that hide keys from queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...lens.errors import InputError
from ...lens.selectors.selectors import Selection
from ..program.site import Site
from ..program.steps import Hide
from .operation import Operation, TokenOperation
from .target import Target


def hide(
    operation: Operation, target: Target, layers: Sequence[int], queries: Selection, keys: Selection
) -> list[Hide]:
    """Steps that hide keys from queries in some layers."""
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
        site = Site(layer, "mixing")
        if queries.prompt.any() or scoring:
            steps.append(Hide(site=site, when="prefill", by=by, behind=behind, **pairs))
        if target.during.kind == "generation" and queries.generated.any():
            steps.append(Hide(site=site, when="decode", by=by, behind=behind, **pairs))
    return steps


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
