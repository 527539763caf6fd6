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
        kept[key] = _copied(args), _copied(kwargs)

    return module.register_forward_pre_hook(keep, with_kwargs=True)


def check_received(module: nn.Module, expected: Received, key: Hashable) -> Any:
    """A hook that raises ReceivedOtherwise where a module receives something else."""

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _alike((args, kwargs), expected):
            raise ReceivedOtherwise(key)

    return module.register_forward_pre_hook(check, with_kwargs=True)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(_copied, value))
    return value


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
            return False
        return is_same(one, other) if one.is_floating_point() else torch.equal(one, other)
    if isinstance(one, dict):
        names = isinstance(other, dict) and one.keys() == other.keys()
        return names and all(_alike(part, other[name]) for name, part in one.items())
    if isinstance(one, list | tuple):
        lengths = isinstance(other, list | tuple) and len(one) == len(other)
        return lengths and all(map(_alike, one, other))
    if one is None or isinstance(one, bool | int | float | str):
        return bool(one == other)
    return type(one) is type(other)
