"""Layer specifications: ``"all"``, ``"last"``, ``3``, ``"0-7"``, ``"0-2,5"``, ``range(4)``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral
from typing import Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ...lens.errors import InputError

_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_RANGE = r"\d+(?:\s*-\s*\d+)?"
_SCHEMA = {
    "description": "In which layers: all, last, a number, or ranges such as 0-2,5.",
    "anyOf": [
        {"type": "string", "pattern": rf"^\s*(?:all|last|{_RANGE}(?:\s*,\s*{_RANGE})*)\s*$"},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
    ],
}


@dataclass(frozen=True)
class Layers:
    """Which layers, before it is known how many there are; written as text in one spelling."""

    named: Literal["all", "last"] | tuple[int, ...]  # or their numbers in ascending order

    @staticmethod
    def of(layers: Any) -> Layers:
        """The layers that a text, a number or several numbers name."""
        if isinstance(layers, Layers):
            return layers
        wrong = f"layers {layers!r}: write all, last, a number, or ranges like 0-2,5"
        if isinstance(layers, str):
            text = re.sub(r"\s+", "", layers)
            if text in ("all", "last"):
                return Layers(text)  # type: ignore[arg-type]
            if not _RANGES.fullmatch(text):
                raise ValueError(wrong)
            chosen = {layer for part in text.split(",") for layer in _expand(part)}
        elif isinstance(layers, bool):
            raise ValueError(wrong)
        elif isinstance(layers, Integral):
            chosen = {int(layers)}
        elif isinstance(layers, Iterable):
            given = list(layers)
            if any(isinstance(layer, bool) or not isinstance(layer, Integral) for layer in given):
                raise ValueError(f"layers {given}: layers are whole numbers")
            chosen = {int(layer) for layer in given}
        else:
            raise ValueError(wrong)
        if not chosen:
            raise ValueError("layers: no layer given")
        if min(chosen) < 0:
            raise ValueError(f"layers {sorted(chosen)}: layers count from 0")
        return Layers(tuple(sorted(chosen)))

    def __str__(self) -> str:
        return self.named if isinstance(self.named, str) else ",".join(_ranges(self.named))

    def indices(self, n_layers: int) -> tuple[int, ...]:
        """The layers of a model with ``n_layers`` that are named."""
        if self.named == "all":
            return tuple(range(n_layers))
        if self.named == "last":
            return (n_layers - 1,)
        if self.named[-1] >= n_layers:
            raise InputError(f"no layer {self.named[-1]}: the model has layers 0 to {n_layers - 1}")
        return self.named

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.of, serialization=core_schema.to_string_ser_schema(when_used="always")
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(_SCHEMA)


ALL, FIRST = Layers("all"), Layers((0,))


def _expand(part: str) -> range:
    first, _, last = part.partition("-")
    span = range(int(first), int(last or first) + 1)
    if not span:
        raise ValueError(f"layers {part!r}: the range runs backwards")
    return span


def _ranges(layers: Iterable[int]) -> Iterable[str]:
    # Consecutive numbers keep a constant distance to their index.
    for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0]):
        members = [layer for _, layer in run]
        yield str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}"
