"""What a model is at the moment: modules, hooks, adapters, flags, settings and weights.

What was seen of a model once holds for as long as it is the same. Its owner may train it, toggle an
adapter, parametrise a weight, register a hook or replace a module at any time, and tells nobody. So
what rests on an earlier look keeps the state it was taken in, and looks again when that is another.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import count
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .entries import is_entry, own_forwards

# Libraries whose hooks and forwards are part of the model they come with.
_OF_THE_MODEL = ("transformers.", "accelerate.", "peft.")
# What comes and goes with forwards and traces of nnsight, and what is looked at apart.
_PASSING = frozenset(
    {"forward", "rope_deltas", "__nnsight__", "_persistent_id", "_output_capturing_hooks_installed"}
) | (vars(nn.Module()).keys() - {"training"})
_TABLES = ("_parameters", "_buffers")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_SIMPLE = frozenset({type(None), bool, int, float, str, torch.dtype})
_SAMPLED = 8
_ENTRY = object()
_CHILDREN = attrgetter("_modules")

# By model its other modules, which do not keep it alive, and the children of all.
_walked: WeakKeyDictionary[nn.Module, tuple[Sequence[nn.Module], list[Any]]] = WeakKeyDictionary()
_numbers: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_next = count()


def modules_of(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, each once, in an order of their own.

    They are those of ``model.modules()``, which takes seven times as long: most calls find the
    children of every module as they were.
    """
    parts, children = _walked.get(model, ((), None))
    found = [model, *parts]
    if [*map(_CHILDREN, found)] != children:
        found = _walk(model)
        _walked[model] = found[1:], [dict(one.items()) for one in map(_CHILDREN, found)]
    return found


def _walk(model: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    seen: set[nn.Module | None] = {None}
    left: list[Any] = [model]
    while left:
        module = left.pop()
        if module not in seen:
            seen.add(module)
            found.append(module)
            if module._modules:
                left.extend(module._modules.values())
    return found


def state_of(model: nn.Module) -> Hashable:
    """Equal as long as nothing about the model has changed that could change its numbers.

    Weights are told apart by their memory and by how often they were written, not by their values:
    see :func:`sample_of_weights` for what that misses.
    """
    settings: dict[int, Hashable] = {}
    made: list[Hashable] = [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")]
    for module in modules_of(model):
        held = vars(module)
        plain = [
            (name, value if type(value) in _SIMPLE else _plain(value))
            for name, value in held.items()
            if name not in _PASSING
        ]
        tensors = [_stamp(tensor) for table in _TABLES for tensor in held[table].values()]
        hooks = [tuple(held[kind]) for kind in _HOOKS]
        config = held.get("config")
        if config is not None and id(config) not in settings:
            settings[id(config)] = _plain(vars(config)) if hasattr(config, "__dict__") else None
        made.append((*structure_of(module), tuple(plain), tuple(tensors), *hooks))
    return (*made, *settings.values())


def structure_of(module: nn.Module) -> tuple[Any, ...]:
    """Which object a module is, of which class, and whose forward it runs."""
    forward = vars(module).get("forward")
    number = _numbers.get(module)
    if number is None:
        number = _numbers[module] = next(_next)
    runs: Hashable = "nnsight" if is_entry(forward) else None if forward is None else id(forward)
    return number, type(module), runs


class Structure:
    """Which modules a model is made of now, and whose forward each runs."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = modules_of(model)
        self._kinds = [*map(type, self._modules)]
        self._runs = _forwards(self._modules)
        self._exactly = own_forwards(self._modules)

    def is_of(self, model: nn.Module) -> bool:
        """Whether the model is still made of the same."""
        modules = modules_of(model)
        return (
            modules == self._modules
            and [*map(type, modules)] == self._kinds
            and (own_forwards(modules) == self._exactly or _forwards(modules) == self._runs)
        )


def _forwards(modules: list[nn.Module]) -> list[Any]:
    """The forward that each has; nnsight's entries, which it renews, are one and the same."""
    return [_ENTRY if is_entry(forward) else forward for forward in own_forwards(modules)]


def owners_hooks(model: nn.Module) -> list[str]:
    """Paths of modules with forward hooks, or a forward, that somebody put on them from outside.

    Nothing is known of what these do: they may count rows, remember calls, or change tomorrow.
    """
    everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    found = ["every module"] if any(map(any, map(dict.values, everywhere))) else []
    return found + [name for name, module in model.named_modules() if is_hooked(module)]


def is_hooked(module: nn.Module) -> bool:
    """Whether a module has a hook or a forward that did not come with the model."""
    held = vars(module)
    for kind in _HOOKS:
        if held[kind] and any(map(_from_outside, held[kind].values())):
            return True
    return _from_outside(_own_forward(module))


def sample_of_weights(model: nn.Module) -> Tensor:
    """A few numbers of every weight: shows what was written behind torch's back (``.data``)."""
    parts = []
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_meta or not tensor.numel() or type(tensor) not in (Tensor, nn.Parameter):
            continue
        flat = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        # Spread over every axis, as many places as there may be.
        spread = range(_SAMPLED)
        places = [[i * (size - 1) // (_SAMPLED - 1) for i in spread] for size in flat.shape]
        flat = flat[tuple(torch.tensor(p, device=flat.device) for p in places)] if places else flat
        parts.append(flat.flatten().to("cpu", torch.float64))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device="cpu")


def _own_forward(module: nn.Module) -> Any:
    """The forward an instance has beside its class's: under nnsight's entry, or bare."""
    held = vars(module)
    if "_hf_hook" in held:  # accelerate has it wrapped
        return None
    forward = held.get("forward")
    if not is_entry(forward):
        return forward
    state = held.get("__nnsight__")
    body = None if state is None else state.original
    return None if body is type(module).forward else body


def _from_outside(function: Any) -> bool:
    if function is None:
        return False
    home = getattr(function, "__module__", None) or type(function).__module__
    return not str(home).startswith(_OF_THE_MODEL)


def _stamp(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    version = 0 if tensor.is_inference() else tensor._version
    place = 0 if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter) else tensor.data_ptr()
    return id(tensor), place, version, tensor.dtype, tensor.device


def _plain(value: Any) -> Hashable:
    """What an attribute says, if it is a plain value or made of such."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, Tensor):
        return _stamp(value)
    if isinstance(value, Mapping):
        return tuple(_pairs(value))
    if isinstance(value, list | tuple | set | frozenset):
        return (
            tuple(sorted(map(repr, value))) if isinstance(value, set) else tuple(map(_plain, value))
        )
    return None


def _pairs(value: Mapping[Any, Any]) -> Iterator[Hashable]:
    for key, held in value.items():
        if isinstance(key, str | int):
            yield key, held if type(held) in _SIMPLE else _plain(held)
