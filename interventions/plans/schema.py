"""The JSON schema of plans, made from the operations themselves and their docstrings.

A schema that is written by hand tells an editor what plans looked like a while ago. The
published file ``plan.schema.json`` is this module's output, and a test compares the two.
"""

from __future__ import annotations

import inspect
import json
import re
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from ...lens.selectors.selector_types import Selector
from ..layers_and_heads.layers import Layers
from ..operations import OPERATIONS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PUBLISHED = Path(__file__).with_name("plan.schema.json")
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n     +.*)*)", re.MULTILINE)


def plan_schema() -> dict[str, Any]:
    """What a plan's YAML or JSON looks like; see :meth:`.plan.Plan.json_schema`."""
    kinds: Any = [kind for _, kind in sorted(OPERATIONS.items())]
    one: Any = Annotated[reduce(or_, kinds), Field(discriminator="op")]
    made = TypeAdapter(list[one]).json_schema()
    definitions = made.pop("$defs")
    made["items"].pop("discriminator")  # a word of OpenAPI, not of JSON schemas
    for kind in OPERATIONS.values():
        entry = definitions[kind.__name__]
        # What stands behind the first paragraph, formulas and sources, is for another reader.
        entry["description"] = _plain(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0])
        entry["required"] = ["op", *entry.get("required", [])]
        told = _attributes(kind)
        for name, field in entry["properties"].items():
            field.pop("title", None)
            default = kind.model_fields[name].default
            if isinstance(default, Selector | Layers):
                field["default"] = str(default)
            if name in told:
                field["description"] = told[name]
        definitions[kind.__name__].pop("title", None)
    return {
        "$schema": DIALECT,
        "title": "embedlens plan",
        "description": "What to change in a forward pass of a multimodal LLM, or in a generation.",
        "type": "object",
        "properties": {
            "operations": {
                **made,
                "description": "The changes; those on the same site act in the order given.",
            }
        },
        "required": ["operations"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def schema_text() -> str:
    """The published file's content."""
    return json.dumps(plan_schema(), indent=2, ensure_ascii=False) + "\n"


def _attributes(kind: type) -> dict[str, str]:
    """The documented attributes of an operation, those it inherits included."""
    told: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
        told |= {name: _plain(text) for name, text in _ATTRIBUTE.findall(section)}
    return told


def _plain(text: str) -> str:
    """A docstring's words on one line, without its marks."""
    without = re.sub(r":\w+:`[.~]*(?:\w+\.)*(\w+)`", r"\1", text).replace("``", "'")
    return " ".join(without.split())
