"""Small experiments on a model, for the questions that one recorded forward leaves open.

The hazard: what a forward does can depend on arguments that the recorded one did not use, and what
looks like a learned query may take no part in it. Each question here costs a forward or two more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..runs.undisturbed import undisturbed
from .parts import Parts
from .recorded_forward import forward_parameters, stream_of


def last_token_layers(
    model: nn.Module, parts: Parts, inputs: Mapping[str, Tensor]
) -> tuple[int, ...]:
    """Layers that see only the last token when only its logits are asked for.

    Args:
        model: The model.
        parts: Its parts.
        inputs: A prompt of more than one token.
    """
    if "logits_to_keep" not in forward_parameters(model):
        return ()
    lengths: list[int] = []

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = stream_of(args, kwargs)
        lengths.append(0 if stream is None else int(stream.shape[-2]))

    with _watching(model, parts, entering):
        model(**inputs, logits_to_keep=1)
    return tuple(index for index, length in enumerate(lengths) if length == 1)


def entry_depends_on(
    model: nn.Module, parts: Parts, inputs: Mapping[str, Tensor], parameter: str
) -> bool:
    """Whether what enters the first layers changes with a parameter, by two forwards.

    Args:
        model: The model; its own parameter is not touched.
        parts: Its parts.
        inputs: A prompt with an image.
        parameter: Path of the parameter.
    """
    seen: list[Tensor] = []

    def entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = stream_of(args, kwargs)
        if stream is not None:
            seen.append(stream.detach().clone())

    value = model.get_parameter(parameter)
    with _watching(model, parts, entering):  # every layer: features may come in between
        for weights in ({}, {parameter: value.flip(-1)}):
            torch.func.functional_call(model, weights, kwargs=dict(inputs))
    half = len(seen) // 2
    return any(not torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


@contextmanager
def _watching(model: nn.Module, parts: Parts, entering: Callable[..., None]) -> Iterator[None]:
    """Call a hook with the arguments of every decoder layer, and leave the model as it was."""
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.no_grad())
        for layer in parts.layers:
            hook = layer.register_forward_pre_hook(entering, with_kwargs=True)
            stack.callback(hook.remove)
        yield
