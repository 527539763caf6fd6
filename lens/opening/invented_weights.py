"""A model of a given configuration that takes next to no memory: true structure, invented weights.

A model whose weights are on a server is known here by its configuration alone, and an anatomy is a
measurement. But what it measures (which modules' outputs add up to the stream, where the image
enters, how logits are made) is decided by code and configuration, not by trained weights. So it is
measured on the same class at its full size, whose matrices are overlapping windows into short runs
of random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.anatomy import Anatomy
from ..anatomy.logit_rule import LogitRule

# How far behind each row of a matrix the next one starts, in numbers.
STEP = 8


def with_invented_weights(make: Callable[[], Any], seed: int = 0) -> Any:
    """The model that ``make`` makes from a configuration, without holding its matrices.

    Vectors (norms, biases) and buffers are as the constructors make them, vectors with a little
    noise from ``seed``; matrices are random, and large enough that every part of a layer moves the
    logits. What comes out differently for another seed was decided by weights.
    """
    # Constructors draw what is thrown away here.
    with torch.random.fork_rng(devices=[]), _matrices_on_meta():
        model = make()
    generator = torch.Generator().manual_seed(seed)
    made: dict[int, nn.Parameter] = {}
    shared: dict[torch.Size, Tensor] = {}
    for module in model.modules():
        for name, given in list(module._parameters.items()):
            if given is None or not given.is_floating_point():
                continue
            if id(given) not in made:
                values = _invented(given, isinstance(module, nn.Embedding), generator, shared)
                made[id(given)] = nn.Parameter(values, requires_grad=False)
            # Parameters that are tied stay one.
            module._parameters[name] = made[id(given)]
        for name, buffer in module._buffers.items():
            # What a checkpoint holds is trained, though it be called a buffer.
            trained = buffer is not None and name not in module._non_persistent_buffers_set
            if trained and buffer.is_floating_point():
                noise = torch.randn(buffer.shape, generator=generator, dtype=buffer.dtype)
                module._buffers[name] = buffer * (1 + 0.1 * noise).abs()
    return model.eval()


def same_facts(first: Anatomy, second: Anatomy) -> str:
    """The first of an anatomy's facts that another one does not have, or nothing."""
    for field in fields(Anatomy):
        # How far rounding let the measurements be off is no fact about the model.
        if not field.name.endswith("_error"):
            one, other = getattr(first, field.name), getattr(second, field.name)
            if not _alike(one, other):
                return field.name
    return ""


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, LogitRule):
        one = (one.scale, one.softcap, one.masked)
        other = (other.scale, other.softcap, other.masked)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float):
        return isinstance(other, float) and math.isclose(one, other, rel_tol=1e-4)
    return bool(one == other)


@contextmanager
def _matrices_on_meta() -> Iterator[None]:
    """Drops the values of matrices as soon as a constructor has registered them."""
    register = nn.Module.register_parameter

    def drop(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        matrix = value is not None and value.ndim > 1 and value.is_floating_point()
        # One that was dropped already is being tied, and stays the same object.
        if value is not None and matrix and not value.is_meta:
            value = nn.Parameter(value.detach().to("meta"), requires_grad=False)
        register(module, name, value)

    nn.Module.register_parameter = drop  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _invented(
    given: Tensor, embedding: bool, generator: torch.Generator, shared: dict[torch.Size, Tensor]
) -> Tensor:
    """Values for one parameter, in the memory of a few of its rows."""
    shape = given.shape
    if given.ndim <= 1:
        return given.detach() + 0.1 * torch.randn(shape, generator=generator, dtype=given.dtype)
    if given.ndim == 3:
        # Experts, which some kernels want without overlap: one matrix is all of them.
        if shape not in shared:
            drawn = torch.randn(shape[1:], generator=generator, dtype=given.dtype)
            shared[shape] = drawn / shape[-1] ** 0.5
        return shared[shape].expand(shape)
    columns = shape[1:].numel()
    pool = torch.randn(shape[0] * STEP + columns, generator=generator, dtype=given.dtype)
    pool *= 0.7 if embedding else 1.1 / columns**0.5
    inner = torch.empty(shape[1:], device="meta").stride()
    return pool.as_strided(shape, (STEP, *inner))
