"""Mappings that cannot be changed, and that travel: Python neither copies nor pickles its own."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


def frozen(mapping: Mapping[Key, Value]) -> MappingProxyType[Key, Value]:
    """A view of a copy of the mapping."""
    return MappingProxyType(dict(mapping))


# For every mapping of this kind: how a batch reaches the worker processes of Ray or a DataLoader.
copyreg.pickle(MappingProxyType, lambda mapping: (frozen, (dict(mapping),)))
