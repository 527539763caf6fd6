"""Layer specifications: ``"all"``, ``"last"``, ``3``, ``"0-7"``, ``"0-2,5"``, ``range(4)``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from ...lens.errors import InputError

_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def canonical_layers(layers: Any) -> str:
    """One spelling for each set of layers, so that equal plans compare and hash equal.

    Raises:
        ValueError: Not a specification of layers.
    """
    if isinstance(layers, str):
        text = re.sub(r"\s+", "", layers)
        if text in ("all", "last"):
            return text
        if not _RANGES.fullmatch(text):
            raise ValueError(f"layers {layers!r}: write all, last, a number, or ranges like 0-2,5")
        chosen = {layer for part in text.split(",") for layer in _expand(part)}
    elif isinstance(layers, bool):
        raise ValueError(f"layers {layers!r}: write all, last, a number, or ranges like 0-2,5")
    elif isinstance(layers, int):
        chosen = {layers}
    elif isinstance(layers, Iterable):
        given = list(layers)
        if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in given):
            raise ValueError(f"layers {given}: layers are whole numbers")
        chosen = {int(layer) for layer in given}
    else:
        raise ValueError(f"layers {layers!r}: write all, last, a number, or ranges like 0-2,5")
    if not chosen:
        raise ValueError("layers: no layer given")
    if min(chosen) < 0:
        raise ValueError(f"layers {sorted(chosen)}: layers count from 0")
    return ",".join(_ranges(sorted(chosen)))


def layer_indices(layers: str, n_layers: int) -> tuple[int, ...]:
    """The layers of a model with ``n_layers`` that a canonical specification names.

    Raises:
        InputError: A layer the model does not have.
    """
    if layers == "all":
        return tuple(range(n_layers))
    if layers == "last":
        return (n_layers - 1,)
    chosen = tuple(layer for part in layers.split(",") for layer in _expand(part))
    if chosen[-1] >= n_layers:
        raise InputError(f"no layer {chosen[-1]}: the model has layers 0 to {n_layers - 1}")
    return chosen


def _expand(part: str) -> range:
    first, _, last = part.partition("-")
    span = range(int(first), int(last or first) + 1)
    if not span:
        raise ValueError(f"layers {part!r}: the range runs backwards")
    return span


def _ranges(layers: list[int]) -> Iterable[str]:
    # Consecutive numbers keep a constant distance to their index.
    for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        members = [layer for _, layer in run]
        yield str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}"


_RANGE = r"\d+(?:\s*-\s*\d+)?"
_SCHEMA = {
    "description": "In which layers: all, last, a number, or ranges such as 0-2,5.",
    "anyOf": [
        {"type": "string", "pattern": rf"^\s*(?:all|last|{_RANGE}(?:\s*,\s*{_RANGE})*)\s*$"},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
    ],
}
Layers = Annotated[str, BeforeValidator(canonical_layers), WithJsonSchema(_SCHEMA)]
