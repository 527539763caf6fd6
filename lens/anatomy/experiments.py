"""Small experiments on a model, for the questions that one recorded forward leaves open.

What a forward does can depend on arguments that the recorded one did not use, and what looks like a
learned query may take no part in it. Each question here costs a forward or two more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import Unsupported
from ..opening.placement import when_brought
from ..runs.undisturbed import undisturbed
from .decoder_parts import Parts
from .recorded_forward import forward_parameters, record, stream_of


def last_token_layers(
    model: nn.Module, parts: Parts, inputs: Mapping[str, Tensor]
) -> tuple[int, ...]:
    """Layers that see only the last of several tokens when only its logits are asked for."""
    if "logits_to_keep" not in forward_parameters(model):
        return ()
    with _entering_layers(model, parts) as streams:
        model(**inputs, logits_to_keep=1)
    return tuple(i for i, stream in enumerate(streams) if stream.shape[-2] == 1)


def entry_depends_on(
    model: nn.Module, parts: Parts, inputs: Mapping[str, Tensor], parameter: str
) -> bool:
    """Whether what enters the first layers changes with a parameter, by two forwards with an image.

    The model's own parameter is not touched.
    """
    value = model.get_parameter(parameter)
    with _entering_layers(model, parts) as streams:  # all: features may come in between
        model(**inputs)
        if value.is_meta:
            path, _, name = parameter.rpartition(".")
            with when_brought(model.get_submodule(path), partial(_flip, name)):
                model(**inputs)
        else:
            torch.func.functional_call(model, {parameter: value.flip(-1)}, kwargs=dict(inputs))
    half = len(streams) // 2
    return any(not torch.equal(a, b) for a, b in zip(streams[:half], streams[half:], strict=True))


def _flip(name: str, owner: nn.Module) -> None:
    owner._parameters[name] = nn.Parameter(owner.get_parameter(name).flip(-1), requires_grad=False)


def rows_that_depend_on_pixels(
    model: nn.Module, parts: Parts, inputs: Mapping[str, Tensor]
) -> Bool[Tensor, " token"]:
    """Positions whose row entering layer 0 changes when the image's pixels do."""
    nowhere = torch.zeros(inputs["input_ids"].shape[1], dtype=torch.bool)
    entering = []
    for factor in (1.0, -0.5):
        changed = {
            # Whole numbers among pixels may be indices of rows and columns.
            name: torch.where(value == value.round(), value, value * factor)
            if _holds_pixels(value)
            else value
            for name, value in inputs.items()
        }
        recording = record(model, parts, changed, nowhere)
        if recording.embeds is None:
            raise Unsupported(
                f"{type(model).__name__}: what enters its first layer is not a stream "
                "[sample, token, d], so visual tokens cannot be told from text; pass "
                "accept={'entry'} to go without this"
            )
        entering.append(recording.embeds.cpu().double())
    difference = (entering[0] - entering[1]).norm(dim=-1)
    depends: Tensor = difference > 1e-6 * entering[0].norm(dim=-1)
    return depends


def _holds_pixels(tensor: Tensor) -> bool:
    """Whether a tensor has more than the two values of a mask."""
    return tensor.is_floating_point() and tensor.ndim > 1 and len(torch.unique(tensor)) > 2


@contextmanager
def _entering_layers(model: nn.Module, parts: Parts) -> Iterator[list[Tensor]]:
    """What enters the decoder layers of the forwards inside, in their order."""
    streams: list[Tensor] = []

    def on_entering(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = stream_of(args, kwargs)
        streams.append(torch.empty(0, 0) if stream is None else stream.detach().clone())

    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.no_grad())
        for layer in parts.layers:
            stack.enter_context(layer.register_forward_pre_hook(on_entering, with_kwargs=True))
        yield streams
