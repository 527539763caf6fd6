"""Heads of a layer by their numbers: ``3``, ``"0-7"``, ``"0-2,5"``, ``[1, 4]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from .layers import SOME, numbers_of, numbers_schema, spelled


@dataclass(frozen=True)
class HeadNumbers:
    """Which heads of each layer, before it is known how many there are."""

    numbers: tuple[int, ...]  # in ascending order

    @staticmethod
    def of(heads: Any) -> HeadNumbers:
        """The heads that a text, a number or several numbers name."""
        if isinstance(heads, HeadNumbers):
            return heads
        return HeadNumbers(numbers_of(heads, "head", "a number, or ranges like 0-2,5"))

    def __str__(self) -> str:
        return spelled(self.numbers)

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.of, serialization=core_schema.to_string_ser_schema(when_used="always")
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return numbers_schema("In which heads: a number, or ranges such as 0-2,5.", SOME)
