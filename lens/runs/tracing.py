"""Tracing contexts of nnsight over one forward pass, here or on a server."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from nnsight.tracing.backend import Backend
from torch import Tensor, nn

from ..errors import InputError
from ..opening.placement import placed
from .one_at_a_time import refuse_inside_a_trace
from .remote import ExplainingBackend, destination, goes_to_server
from .undisturbed import undisturbed

# By the function that a model runs, whether it takes ``use_cache``.
_TAKES_CACHE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class UndisturbedBackend(Backend):  # type: ignore[misc]
    """Runs an nnsight block through another backend, on a model left :func:`undisturbed`.

    Gradients are recorded only if asked for; nnsight does by default.
    """

    def __init__(
        self,
        inner: Backend,
        model: nn.Module,
        *,
        grad: bool,
        entered: Collection[nn.Module] | None = None,
    ) -> None:
        self.inner = inner
        self.model = model
        self.grad = grad
        self.entered = entered

    def __call__(self, tracer: Any) -> None:
        """Run the tracer's block."""
        with undisturbed(self.model, self.entered), torch.set_grad_enabled(self.grad):
            self.inner(tracer)


def trace_forward(
    host: Any,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    remote: bool | str = False,
    grad: bool = False,
    entered: Collection[nn.Module] | None = None,
    **forward: Any,
) -> Any:
    """A tracing context of nnsight over one forward pass of the host, perhaps a copy with edits.

    ``entered`` are the modules that the block and the edits look into, if that is known.
    """
    config: Any = model.config
    made_by = config.get_text_config()._attn_implementation
    if forward.get("output_attentions") and made_by != "eager":
        raise InputError(
            f"output_attentions=True: {made_by} attention makes no weights, so nothing would be "
            "returned; load the model with attn_implementation='eager'"
        )
    refuse_inside_a_trace(host, model)
    settings = {**without_cache(model), **forward}
    remote = destination(model, remote)
    sent = goes_to_server(host, remote)
    if not sent:
        # The model may have been moved since the batch was made.
        inputs = placed(model, inputs)
    tracer = host.trace(**inputs, **settings, **({"remote": remote} if remote else {}))
    tracer.backend = (
        ExplainingBackend(tracer.backend)
        if sent
        else UndisturbedBackend(tracer.backend, model, grad=grad, entered=entered)
    )
    return tracer


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The argument that keeps a forward from filling a cache, where the forward takes it."""
    forward: Any = model.forward
    # nnsight's entry, and a method of the model, say which function they run.
    function = getattr(forward, "__wrapped__", getattr(forward, "__func__", None))
    takes = None if function is None else _TAKES_CACHE.get(function)
    if takes is None:
        parameters = inspect.signature(forward).parameters
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        takes = open_ended or "use_cache" in parameters
        if function is not None:
            _TAKES_CACHE[function] = takes
    return {"use_cache": False} if takes else {}
