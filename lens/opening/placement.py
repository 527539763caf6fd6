"""Where a model computes, and in which type: the one place that answers this for every input.

Weights that are offloaded are kept elsewhere than they are used, a sharded model has several
devices, adapters and quantised layers hold their weights further in, and a vision tower may be of
another type than the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .present_state import modules_of


def device_of(module: nn.Module, otherwise: torch.device | None = None) -> torch.device:
    """Where a module computes.

    Args:
        module: The module.
        otherwise: Where one without weights does; the CPU when None.
    """
    # Weights that are offloaded live on "meta"; accelerate's hook knows where they are brought.
    for part in module.modules():
        for where in _execution_devices(getattr(part, "_hf_hook", None)):
            return torch.device(where)
    held = (tensor.device for tensor in (*module.parameters(), *module.buffers()))
    return next(held, otherwise or torch.device("cpu"))


def dtype_of(model: Any, module: nn.Module) -> torch.dtype:
    """Type in which a module takes real numbers: of its first real weight, else the model's."""
    real = (p.dtype for p in module.parameters() if p.is_floating_point() and p.element_size() > 1)
    found: torch.dtype = next(real, None) or model.dtype
    return found


def placed(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs where the model takes them now, and in its types where they are real numbers.

    Real numbers are pictures, which go to their tower in the tower's type.
    """
    embedding = model.get_input_embeddings()
    device = device_of(embedding)
    if device.type == "meta":
        refuse_without_values(model)
    real = [name for name, tensor in inputs.items() if tensor.is_floating_point()]
    types = dict.fromkeys(real, _tower_dtype(model, dtype_of(model, embedding)) if real else None)
    return {name: tensor.to(device, types.get(name)) for name, tensor in inputs.items()}


def refuse_without_values(model: nn.Module) -> None:
    """Refuse weights on the meta device that nothing brings from elsewhere.

    Raises:
        InputError: There are some.
    """
    brought: set[str] = set()
    for name, module in model.named_modules():
        own = [n for n, t in (*module._parameters.items(), *module._buffers.items()) if _empty(t)]
        above = any(name == path or name.startswith(f"{path}.") for path in brought)
        if _offloads(getattr(module, "_hf_hook", None)):
            brought.add(name)
        elif own and not above:
            raise InputError(
                f"the weights of this {type(model).__name__} are on the meta device and have no "
                f"values ({name}.{own[0]}): load them with from_pretrained, or let accelerate "
                "dispatch or offload a model that has them"
            )


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights are brought from elsewhere when they are needed."""
    return any(_offloads(getattr(module, "_hf_hook", None)) for module in model.modules())


@contextmanager
def when_brought(module: nn.Module, do: Callable[[nn.Module], object]) -> Iterator[None]:
    """Do something to a module in every call, as soon as accelerate has brought its weights."""
    hook: Any = module._hf_hook
    usual = hook.pre_forward

    def bring(called: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = usual(called, *args, **kwargs)
        do(called)
        return given

    hook.pre_forward = bring
    try:
        yield
    finally:
        del hook.pre_forward


def brought_weight(module: Any, given: Tensor) -> Tensor:
    """The weight of a module whose weights are elsewhere, by calling it on something."""
    seen: list[Tensor] = []
    with when_brought(module, lambda called: seen.append(called.get_parameter("weight").detach())):
        module(given)
    return seen[0]


def _empty(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_meta


def _hooks(hook: Any) -> Iterator[Any]:
    """One of accelerate's hooks, or those that it is made of."""
    if hook is not None:
        yield from (found for part in getattr(hook, "hooks", ()) for found in _hooks(part))
        yield hook


def _execution_devices(hook: Any) -> Iterator[Any]:
    found = (getattr(part, "execution_device", None) for part in _hooks(hook))
    return (where for where in found if where is not None and str(where) != "meta")


def _offloads(hook: Any) -> bool:
    return any(getattr(part, "offload", False) for part in _hooks(hook))


def _tower_dtype(model: Any, dtype: torch.dtype) -> torch.dtype:
    """Type of the first real weight that stands neither in the decoder nor beside it."""
    modules = [module for module in modules_of(model) if module._parameters]
    tables = (module._parameters.values() for module in modules)
    everywhere = {p.dtype for p in chain.from_iterable(tables) if p is not None}
    if len(everywhere) == 1:
        return dtype
    decoder = getattr(model, "get_decoder", lambda: None)()
    parts = (decoder, model.get_input_embeddings(), model.get_output_embeddings())
    text = {
        parameter
        for part in parts
        if isinstance(part, nn.Module) and part is not model
        for module in modules_of(part)
        for parameter in module._parameters.values()
    }
    found = {
        parameter.dtype
        for module in modules
        for parameter in module._parameters.values()
        if parameter is not None and parameter not in text
    }
    types = {kind for kind in found if kind.is_floating_point and kind.itemsize > 1}
    # Where a tower has several types, it converts by itself.
    return types.pop() if len(types) == 1 else dtype
