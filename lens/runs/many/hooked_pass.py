"""A forward of a model with hooks on it, and what is read in it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor

from ...errors import InputError
from ...opening.wrapping import module_path
from ..forward import Output, Request
from ..reading_in_trace import selected, tensor_of
from ..tracing import without_cache
from ..undisturbed import undisturbed
from .hooked_model import HookedModel, read_at
from .inside_in_hooks import BEFORE_MATRIX, CALLS, before_matrix_read


def hooked_pass(host: HookedModel, inputs: Mapping[str, Tensor], request: Request) -> Output:
    """A forward of the model as it is now, with all hooks on it; what is read has them in it.

    What is read at calls, :func:`.calls_read` reads, around this.
    """
    model: Any = host.model
    with ExitStack() as stack:
        for site in request.sites:
            if site["side"] in BEFORE_MATRIX:
                stack.enter_context(before_matrix_read(host, request, site))
            elif site["side"] not in CALLS:
                module = model.get_submodule(module_path(site["path"]))
                stack.enter_context(
                    read_at(module, site["side"], partial(_keep, host, request, site))
                )
        stack.enter_context(undisturbed(model))
        logits = model(**inputs, **without_cache(model), **request.arguments).logits
    if len(logits) != request.samples:
        raise InputError(f"{len(logits)} rows of logits came back for {request.samples}")
    return Output(logits, {site["key"]: host.states[site["key"]] for site in request.sites})


def _keep(host: HookedModel, request: Request, site: dict[str, Any], value: Any) -> None:
    """Read a site, as :func:`~embedlens.lens.runs.reading_in_trace.read_sites` does in a trace."""
    rows = host.rows if site["side"] == "output" else None
    value = tensor_of(value if rows is None else rows.whole(value))
    kept = selected(value, request.samples, request.rows, request.columns)
    host.states[site["key"]] = kept if site["scale"] == 1.0 else kept * site["scale"]
