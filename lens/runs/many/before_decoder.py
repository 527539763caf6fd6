"""What stands in front of the decoder, and what it returned; and layers that share no such thing.

Models write into what their modules return (a tower's output gets its features filled in later).
So what is kept is a copy, and of a module that runs several times nothing is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..finite import tensors_in

# How far into what a layer is given is looked: a cache has layers, which have tensors.
DEEPEST = 6
# What every module has, but for its buffers: hooks come and go with a pass.
_NOT_STATE = (vars(nn.Module()).keys() - {"_buffers"}) | {
    *("config", "forward", "__nnsight__", "_hf_hook", "_old_forward")
}


def before_decoder(model: nn.Module, decoder: str, apart: Iterable[str]) -> list[str]:
    """The outermost modules beside a decoder: towers, projectors and what else there is.

    Args:
        model: The transformers model.
        decoder: Path of the decoder.
        apart: Paths to leave out: what is cheap, or stands behind the decoder.
    """
    found: list[str] = []
    path = ""
    for name in decoder.split("."):
        inside = model.get_submodule(path)
        siblings = [child for child, _ in inside.named_children() if child != name]
        found += [f"{path}.{child}" if path else child for child in siblings]
        path = f"{path}.{name}" if path else name
    return [path for path in found if path not in set(apart)]


@contextmanager
def keep_outputs(model: nn.Module, decoder: str, paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Keep what modules beside the decoder return while inside, by path, if they run exactly once.

    And up to the moment when the decoder starts: what runs behind it depends on it.
    """
    kept: dict[str, Any] = {}
    several: set[str] = set()
    started = False

    def start(_: nn.Module, __: Any) -> None:
        nonlocal started
        started = True

    def keep(path: str, output: Any) -> None:
        if started:
            several.add(path)
        if path in kept or path in several:
            several.add(path)
            kept.pop(path, None)
        else:
            kept[path] = copy.deepcopy(output)

    handles = [model.get_submodule(decoder).register_forward_pre_hook(start)]
    for path in paths:
        module = model.get_submodule(path)
        handles.append(module.register_forward_hook(lambda _, __, out, at=path: keep(at, out)))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch_layers(
    model: nn.Module, layers: Iterable[str], but: Collection[str] = ()
) -> Iterator[set[str]]:
    """Layers that write into what they are given beside the stream, or on themselves.

    Keys that layers share, or a running state: a layer that is skipped would not have written them.
    What is given under the names in ``but`` is not looked at.
    """
    written: set[str] = set()
    given: dict[str, Any] = {}

    def before(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        beside = (args[1:], {k: v for k, v in kwargs.items() if k not in ("hidden_states", *but)})
        given[path] = beside, _marks(beside), _held(layer)

    def after(path: str, layer: nn.Module) -> None:
        beside, marks, held = given.pop(path)
        if _marks(beside) != marks or _held(layer) != held:
            written.add(path)

    handles = []
    for path in layers:
        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(partial(before, path), with_kwargs=True))
        handles.append(module.register_forward_hook(lambda it, *_, at=path: after(at, it)))
    try:
        yield written
    finally:
        for handle in handles:
            handle.remove()


def _marks(value: Any, depth: int = 0) -> Any:
    """What changes when somebody writes into a value, however nested."""
    if isinstance(value, torch.Tensor):
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, dict):
        return [(str(name), _marks(part, depth + 1)) for name, part in value.items()]
    if isinstance(value, list | tuple):
        return [_marks(part, depth + 1) for part in value]
    inside = getattr(value, "__dict__", None)
    if inside and depth < DEEPEST and not isinstance(value, nn.Module | type):
        return _marks(inside, depth + 1)
    return repr(value) if isinstance(value, bool | int | float | str) else id(value)


def _held(layer: nn.Module) -> Any:
    """What is kept on a layer and on the modules in it."""
    return [
        _marks({name: part for name, part in vars(module).items() if name not in _NOT_STATE})
        for module in layer.modules()
    ]


def return_again(returned: Any, *_: Any, **__: Any) -> Any:
    """A copy of what a module returned, for whoever may write into it.

    Tensors that have their memory to themselves are cloned, which is four times as fast as what
    ``deepcopy`` does with them.
    """
    tensors = {id(tensor): tensor for tensor in tensors_in(returned)}
    plain = all(type(tensor) is torch.Tensor for tensor in tensors.values())
    if not plain or len({t.untyped_storage().data_ptr() for t in tensors.values()}) < len(tensors):
        return copy.deepcopy(returned)
    return copy.deepcopy(returned, {key: tensor.clone() for key, tensor in tensors.items()})


def return_kept(host: Any, outputs: Mapping[str, Any]) -> None:
    """Let modules return on later traces what they returned before, without running.

    Args:
        host: A copy of the nnsight model, on which this is stored.
        outputs: What to return, by nnsight path.
    """
    for path, output in outputs.items():
        _return_again(host, path, output)


def _return_again(host: Any, path: str, output: Any) -> None:
    with host.edit(inplace=True):
        site = host.get(path)
        # Copied when the module is reached: not all copies are alive at once.
        _ = site.inputs
        site.skip(copy.deepcopy(output))
