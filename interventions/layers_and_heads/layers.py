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
SOME = rf"{_RANGE}(?:\s*,\s*{_RANGE})*"


def numbers_schema(description: str, pattern: str) -> dict[str, Any]:
    """The JSON schema of numbers, whose text has a pattern."""
    number = {"type": "integer", "minimum": 0}
    text = {"type": "string", "pattern": rf"^\s*(?:{pattern})\s*$"}
    anyof = [text, number, {"type": "array", "items": number, "minItems": 1}]
    return {"description": description, "anyOf": anyof}


@dataclass(frozen=True)
class Layers:
    """Which layers, before it is known how many there are; written as text in one spelling."""

    named: Literal["all", "last"] | tuple[int, ...]  # or their numbers in ascending order

    @staticmethod
    def of(layers: Any) -> Layers:
        """The layers that a text, a number or several numbers name."""
        if isinstance(layers, Layers):
            return layers
        if isinstance(layers, str) and layers.strip() in ("all", "last"):
            return Layers(layers.strip())  # type: ignore[arg-type]
        return Layers(numbers_of(layers, "layer", "all, last, a number, or ranges like 0-2,5"))

    def __str__(self) -> str:
        return self.named if isinstance(self.named, str) else spelled(self.named)

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
        told = "In which layers: all, last, a number, or ranges such as 0-2,5."
        return numbers_schema(told, f"all|last|{SOME}")


ALL, FIRST = Layers("all"), Layers((0,))


def numbers_of(given: Any, what: str, forms: str) -> tuple[int, ...]:
    """The numbers, in ascending order, that a text of ranges, a number or several numbers name.

    ``what`` is counted, and ``forms`` are how it can be written, for the ValueError otherwise.
    """
    wrong = f"{what}s {given!r}: write {forms}"
    if isinstance(given, str):
        text = re.sub(r"\s+", "", given)
        if not _RANGES.fullmatch(text):
            raise ValueError(wrong)
        chosen = {number for part in text.split(",") for number in _expand(part, what)}
    elif isinstance(given, bool):
        raise ValueError(wrong)
    elif isinstance(given, Integral):
        chosen = {int(given)}
    elif isinstance(given, Iterable):
        listed = list(given)
        if any(isinstance(number, bool) or not isinstance(number, Integral) for number in listed):
            raise ValueError(f"{what}s {listed}: {what}s are whole numbers")
        chosen = {int(number) for number in listed}
    else:
        raise ValueError(wrong)
    if not chosen:
        raise ValueError(f"{what}s: no {what} given")
    if min(chosen) < 0:
        raise ValueError(f"{what}s {sorted(chosen)}: {what}s count from 0")
    return tuple(sorted(chosen))


def spelled(numbers: Iterable[int]) -> str:
    """Numbers in ascending order as text that :func:`numbers_of` reads."""
    return ",".join(_ranges(numbers))


def _expand(part: str, what: str) -> range:
    first, _, last = part.partition("-")
    span = range(int(first), int(last or first) + 1)
    if not span:
        raise ValueError(f"{what}s {part!r}: the range runs backwards")
    return span


def _ranges(numbers: Iterable[int]) -> Iterable[str]:
    # Consecutive numbers keep a constant distance to their index.
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}"
