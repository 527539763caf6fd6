"""Running a model without leaving a trace on it.

The hazard: a forward pass is not free of side effects. Several models of transformers keep the
position offset of the last prompt on themselves and reuse it in the next call, dynamic rotary
embeddings keep the longest length they have met, and dropout is alive in a model that somebody is
training. So every pass of embedlens happens in evaluation mode, and puts back what it changed.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from nnsight.tracing.backend import Backend
from torch import Tensor, nn

from ..errors import REFUSED, InputError
from .remote import ExplainingBackend, check_identity, destination

# nnsight's own slot; `.source` inside a trace rewrites it, and that has to last.
_KEPT = frozenset({"forward", "training"})
# What models carry over from one prompt to the next; a pass of ours depends on its inputs alone.
CARRIED = frozenset({"rope_deltas"})
# What nnsight writes on a module in order to send a reference to it.
_TAG = "_persistent_id"


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards the modules are as they were, whatever happened.

    Put back are every module's own training flag, its public plain attributes and its table of
    buffers. Attributes whose names begin with an underscore are bookkeeping that goes with hooks
    and parameters, and stay.
    """
    modules = list(model.modules())
    before = [
        (
            module,
            module.training,
            {name: value for name, value in vars(module).items() if _is_state(name)},
            dict(module._buffers),
        )
        for module in modules
    ]
    for module in modules:
        module.training = False
        for name in CARRIED & vars(module).keys():
            setattr(module, name, None)
    try:
        yield
    except ValueError as error:
        # Shipped code knows no class of ours.
        if str(error).startswith(REFUSED):
            raise InputError(str(error).removeprefix(REFUSED)) from None
        raise
    finally:
        for module, training, attributes, buffers in before:
            module.training = training
            held = vars(module)
            for name in [name for name in held if _is_state(name) and name not in attributes]:
                del held[name]
            held.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


class UndisturbedBackend(Backend):  # type: ignore[misc]
    """Runs an nnsight block through another backend, on a model left :func:`undisturbed`.

    Args:
        inner: The backend that runs the block.
        model: The model the block runs on.
        grad: Whether gradients are recorded; nnsight does by default.
    """

    def __init__(self, inner: Backend, model: nn.Module, *, grad: bool) -> None:
        self.inner = inner
        self.model = model
        self.grad = grad

    def __call__(self, tracer: Any) -> None:
        """Run the tracer's block."""
        with undisturbed(self.model), torch.set_grad_enabled(self.grad):
            self.inner(tracer)


def trace_forward(
    target: Any,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    remote: bool | str = False,
    grad: bool = False,
    **forward: Any,
) -> Any:
    """A tracing context of nnsight over one forward pass.

    Args:
        target: The nnsight model, or a copy of it with edits.
        model: The transformers model inside.
        inputs: The inputs.
        remote: As for :meth:`VisualLM.trace`.
        grad: Whether gradients are recorded.
        **forward: More arguments of the forward.
    """
    settings = {**without_cache(model), **forward}
    remote = destination(model, remote)
    sent = _sent(target, remote)
    tracer = target.trace(**inputs, **settings, **({"remote": remote} if remote else {}))
    tracer.backend = (
        ExplainingBackend(tracer.backend)
        if sent
        else UndisturbedBackend(tracer.backend, model, grad=grad)
    )
    return tracer


def generate_ids(
    target: Any,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    remote: bool | str = False,
    **generation: Any,
) -> Int[Tensor, "sample new"]:
    """Ids that a model writes after the prompts; arguments as for :func:`trace_forward`."""
    remote = destination(model, remote)
    arguments = {**inputs, **generation, **({"remote": remote} if remote else {})}
    sent = _sent(target, remote)
    with warnings.catch_warnings(), undisturbed(model):
        # How an operation on every decoding step ends: it waits for one more step.
        warnings.filterwarnings("ignore", "'.*' was never reached: the loop asked for a step")
        tracer = target.trace(**arguments, fn="generate")
        if sent:
            tracer.backend = ExplainingBackend(tracer.backend)
        with tracer:
            ids: Tensor = tracer.result.save()
    # Some models return the prompt along with what they wrote, some do not.
    prompt = inputs["input_ids"].to(ids.device)
    length = prompt.shape[1]
    repeated = ids.shape[1] >= length and torch.equal(ids[:, :length], prompt)
    return ids[:, length:] if repeated else ids


def without_cache(model: nn.Module) -> dict[str, Any]:
    """The argument that keeps a forward from filling a cache, where the forward takes it."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {"use_cache": False} if open_ended or "use_cache" in parameters else {}


def device_of(module: nn.Module) -> torch.device:
    """Where a module that has weights computes; offloaded weights are kept elsewhere."""
    # Weights that are offloaded live on "meta"; accelerate's hook knows where they are brought.
    where = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if where is None else torch.device(where)


def _sent(target: Any, remote: bool | str) -> bool:
    """Whether a run goes to a server; the server must then be told which model is meant."""
    if remote in (False, "local"):
        return False
    check_identity(target)
    return True


def _is_state(name: str) -> bool:
    return name == _TAG or not (name.startswith("_") or name in _KEPT)
