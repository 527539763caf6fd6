"""Reading what goes on inside layers in a pass of hooks, with the functions that traces read with.

Queries, keys and values are nobody's output: they are seen where the mixer's own forward calls the
attention function, in the forward that nnsight rewrites for traces, so that it is the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from nnsight.intervention.source import instrument
from torch import nn

from ...opening.wrapping import module_path
from ..forward import Request
from ..reading_in_trace import before_of, selected, tensor_of, values_of
from ..weights_in_force import weights_of_call
from .hooked_model import HookedModel, read_at
from .replaced_forwards import replaced_forwards

# Sides of a site that are the call of an attention function, and those before a matrix.
CALLS, BEFORE_MATRIX = ("values", "weights"), ("heads", "neurons")


def readable_in_hooks(model: nn.Module, sites: Iterable[dict[str, Any]]) -> bool:
    """Whether all sites can be read in hooks: a mixer whose forward is accelerate's cannot."""
    mixers = [_module(model, site["path"]) for site in sites if site["side"] in CALLS]
    return all("__nnsight__" in vars(m) and "_hf_hook" not in vars(m) for m in mixers)


def calls_read(host: HookedModel, request: Request) -> AbstractContextManager[None]:
    """Leave in ``host.states`` what is read at calls of attention functions, while inside.

    Entered before other forwards stand in for those of the mixers, which then run these.
    """
    sites: dict[nn.Module, list[dict[str, Any]]] = {}
    for site in request.sites:
        if site["side"] in CALLS:
            sites.setdefault(_module(host.model, site["path"]), []).append(site)
    return replaced_forwards(
        {mixer: _seeing(mixer, host, request, those) for mixer, those in sites.items()}
    )


def _seeing(
    mixer: nn.Module, host: HookedModel, request: Request, sites: list[dict[str, Any]]
) -> Callable[..., Any]:
    """A mixer's forward that reads at its call."""
    place = f"source.{sites[0]['call']}"

    def operation(location: str, function: Any, *args: Any, **options: Any) -> Any:
        output = function(*args, **options)
        if location == place:
            for site in sites:
                host.states[site["key"]] = (
                    values_of(args, request.rows, request.columns)
                    if site["side"] == "values"
                    else weights_of_call((args, options), output, site, dict(request.pairs))
                )
        return output

    forward, _ = instrument(vars(mixer)["__nnsight__"].original, operation)
    return partial(forward, mixer)


@contextmanager
def before_matrix_read(host: HookedModel, request: Request, site: dict[str, Any]) -> Iterator[None]:
    """Leave in ``host.states`` what is read before a sublayer's last matrix."""
    matrix, whole = (_module(host.model, site[name]) for name in ("path", "whole"))
    found: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:
        found[name] = selected(tensor_of(value), request.samples, request.rows, request.columns)
        if name == "whole":
            # Its forward, because its hooks are those of this pass.
            host.states[site["key"]] = before_of(matrix.forward, site, **found)

    with ExitStack() as stack:
        for name, module, side in (
            ("into", matrix, "input"),
            ("made", matrix, "output"),
            ("whole", whole, "output"),
        ):
            stack.enter_context(read_at(module, side, partial(keep, name)))
        yield


def _module(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(module_path(path))
