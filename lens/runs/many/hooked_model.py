"""A transformers model as a host of programs: what hooks on it share in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...errors import InputError
from ...opening.wrapping import module_path
from ..forward import Output, Request
from ..reading_in_trace import by_sample, tensor_of
from ..tracing import without_cache
from .some_rows import SomeRows


@dataclass(eq=False)
class HookedModel:
    """One pass of a transformers model with hooks on it.

    Attributes:
        model: The transformers model.
        store: What steps leave to one another.
        rows: The rows that the layer which is running is computed for; None for all.
        whole: Layers whose FFN has to be computed for all rows, because somebody keeps it.
        first: The layer in which the prompt of a generation starts: before it, steps on the prompt
            have been carried out in another pass.
    """

    model: nn.Module
    store: dict[str, Any] = field(default_factory=dict)
    rows: SomeRows | None = None
    whole: frozenset[int] = frozenset()
    first: int = 0

    def show(self, rows: SomeRows | None) -> None:
        """Say for which rows the layer is computed that runs next."""
        self.rows = rows


def hooked_pass(host: HookedModel, inputs: Mapping[str, Tensor], request: Request) -> Output:
    """A forward of the model as it is now, with all hooks on it; what is read has them in it.

    To leave it :func:`.undisturbed` is the caller's.
    """
    model: Any = host.model
    states: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in request.sites:
            module = model.get_submodule(module_path(site["path"]))
            keep = partial(_keep, host, request, states, site)
            stack.enter_context(read_at(module, site["side"], keep))
        logits = model(**inputs, **without_cache(model), **request.arguments).logits
    if len(logits) != request.samples:
        raise InputError(f"{len(logits)} rows of logits came back for {request.samples}")
    return Output(logits, {site["key"]: states[site["key"]] for site in request.sites})


def read_at(module: nn.Module, side: str, keep: Callable[[Any], None]) -> Any:
    """A hook that reads what a module receives first, or returns."""
    if side == "output":
        return module.register_forward_hook(lambda _, __, output: keep(output))

    def receive(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else next(iter(kwargs.values())))

    return module.register_forward_pre_hook(receive, with_kwargs=True)


def _keep(
    host: HookedModel, request: Request, states: dict[str, Tensor], site: dict[str, Any], value: Any
) -> None:
    """Read a site, as :func:`~embedlens.lens.runs.reading_in_trace.read_sites` does in a trace."""
    rows = host.rows if site["side"] == "output" else None
    value = tensor_of(value if rows is None else rows.whole(value))
    value = by_sample(value, request.samples)
    kept = value[request.rows.to(value.device), request.columns.to(value.device)]
    states[site["key"]] = kept if site["scale"] == 1.0 else kept * site["scale"]
