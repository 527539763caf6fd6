"""Whether a module receives in one pass what it received in another.

A condition may hide from its logits what was shared wrongly, and then speak for others that do not.
What a module receives hides nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..proof_record import is_same

Received = tuple[tuple[Any, ...], dict[str, Any]]


class ReceivedOtherwise(Exception):
    """A module receives something else than it did; with the key of what is wrong."""


def keep_received(module: nn.Module, kept: dict[Any, Received], key: Any) -> Any:
    """A hook that keeps what a module receives, before other hooks change it."""

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept[key] = kept_arguments(args), kept_arguments(kwargs)

    return module.register_forward_pre_hook(keep, with_kwargs=True)


def check_received(module: nn.Module, expected: Received, key: Hashable) -> Any:
    """A hook that raises ReceivedOtherwise where a module receives something else."""

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not alike((args, kwargs), expected):
            raise ReceivedOtherwise(key)

    return module.register_forward_pre_hook(check, with_kwargs=True)


def kept_arguments(value: Any) -> Any:
    """A copy of what a module receives."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: kept_arguments(part) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(kept_arguments, value))
    return value


def alike(one: Any, other: Any) -> bool:
    """Whether a module receives the same as before, but for rounding."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        return is_same(one, other) if one.is_floating_point() else torch.equal(one, other)
    if isinstance(one, dict):
        names = isinstance(other, dict) and one.keys() == other.keys()
        return names and all(alike(part, other[name]) for name, part in one.items())
    if isinstance(one, list | tuple):
        lengths = isinstance(other, list | tuple) and len(one) == len(other)
        return lengths and all(map(alike, one, other))
    if one is None or isinstance(one, bool | int | float | str):
        return bool(one == other)
    return type(one) is type(other)
