"""Numbers that cannot be measured: NaN and infinite states, and where they come from.

Some models overflow float16, which ends at 65504, and one NaN makes every later number NaN: a
softmax, a nearest word and a fit are then wrong or fail far from the cause. So what a pass returns
is looked at once, by its extremes. Only if something is wrong the pass is made again, with a look
at what every module returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotFinite


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no number is NaN or infinite, by one reduction for each tensor."""
    return all(
        isfinite(edge.item())
        for tensor in tensors
        if tensor.numel()
        for edge in torch.aminmax(tensor.detach())
    )


def says_something(logits: Tensor) -> bool:
    """Whether logits ``[..., vocab]`` have a finite largest one; masked ones may be infinite."""
    return not logits.numel() or all_finite([logits.detach().amax(-1)])


class _Watch:
    """Notes the first module that returns a number that is not finite."""

    def __init__(self, mask: Tensor | None) -> None:
        self.mask = mask
        self.path: str | None = None
        self.dtype: torch.dtype | None = None
        self.weights = False

    def on_output(self, path: str, module: nn.Module, _: Any, output: Any) -> None:
        """After a module."""
        for tensor in tensors_in(output) if self.path is None else ():
            real = self._real(tensor)
            if tensor.is_floating_point() and not all_finite([real]):
                self.path, self.dtype = path, tensor.dtype
                held = (*module.parameters(recurse=False), *module.buffers(recurse=False))
                self.weights = not all_finite(
                    t for t in held if t.is_floating_point() and not t.is_meta
                )
                return

    def _real(self, tensor: Tensor) -> Tensor:
        """Without padding, whose states mean nothing."""
        if self.mask is None or tensor.shape[:2] != self.mask.shape:
            return tensor
        return tensor[self.mask.to(tensor.device)]


def not_finite(
    model: nn.Module,
    again: Callable[[], Any] | None,
    inputs: Mapping[str, Tensor],
    layers: Sequence[str],
    *,
    planned: bool = False,
) -> NotFinite:
    """What to raise when numbers are not finite: in which module first, and what helps.

    Args:
        model: The transformers model.
        again: Makes the same pass; None where it cannot be watched.
        inputs: What goes in.
        layers: Paths of the decoder layers.
        planned: Whether a plan is in force.
    """
    mask = inputs.get("attention_mask")
    watch = _Watch(None if mask is None else mask.bool())
    # That it ends badly is known.
    with suppress(Exception), _watched(model, watch):
        if again is not None:
            again()
    numbers = f"{type(model).__name__}{' under this plan' if planned else ''}: NaN or infinite"
    place = (
        "in what came back" if watch.path is None else f"first from {_named(watch.path, layers)}"
    )
    dtype = watch.dtype or next(
        (p.dtype for p in model.parameters() if p.is_floating_point()), None
    )
    if watch.weights:
        why = "its own weights are such: load them anew, in a larger type (dtype='bfloat16')"
    elif dtype == torch.float16:
        why = "float16 ends at 65504: load the model in bfloat16 or float32 (dtype='bfloat16')"
    elif planned:
        why = "look whether it is so without the plan, and at the values that the plan brings"
    else:
        why = "its weights or what goes in are too large: look at them, or load it in float32"
    return NotFinite(f"{numbers} numbers, {place}; {why}")


@contextmanager
def largest_logits(head: nn.Module) -> Iterator[list[Tensor]]:
    """The largest logits that a head makes for the last position, by pass, while inside."""
    largest: list[Tensor] = []

    def on_head(_: nn.Module, __: Any, logits: Any) -> None:
        if isinstance(logits, Tensor):
            last = logits if logits.ndim < 3 else logits[:, -1]
            largest.append(last.detach().amax())

    handle = head.register_forward_hook(on_head)
    try:
        yield largest
    finally:
        handle.remove()


@contextmanager
def _watched(model: nn.Module, watch: _Watch) -> Iterator[None]:
    with ExitStack() as stack:
        for path, module in model.named_modules():
            handle = module.register_forward_hook(partial(watch.on_output, path or "the model"))
            stack.callback(handle.remove)
        yield


def _named(path: str, layers: Sequence[str]) -> str:
    for index, layer in enumerate(layers):
        if f"{path}.".startswith(f"{layer}."):
            return f"layer {index} ({path})"
    return path


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors in what a module returned, however nested."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from tensors_in(tuple(output.values()))
    elif isinstance(output, tuple | list):
        for one in output:
            yield from tensors_in(one)
