"""Reading plans from text, strictly: every fault is named together with the path to it.

YAML takes the second of two equal keys without a word, and reads ``yes`` as a flag. A
plan that means something else than it says is worse than none, so nothing is converted or dropped.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ...lens.errors import InputError
from ...lens.selectors.parser import is_its_text
from ..operations.operation import OPERATIONS, Operation, explain


class _Strict(yaml.SafeLoader):
    """A loader that refuses what YAML would let pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys all differ."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands here a second time",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_operations(text: str) -> list[Operation]:
    """The operations of a plan's YAML or JSON."""
    return operations_of(load_strictly(text, "the plan"))


def load_strictly(text: str, what: str) -> Any:
    """The data in YAML or JSON, each key of a mapping once.

    Raises:
        InputError: The text is neither, or has a key twice; the message begins with ``what``.
    """
    try:
        return yaml.load(text, _Strict)  # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{what} is not valid YAML or JSON: {error}") from None


def operations_of(data: Any) -> list[Operation]:
    """The operations of a plan as plain data."""
    if not isinstance(data, dict) or set(data) != {"operations"}:
        found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise InputError(f"a plan has one key, 'operations', a list; found {found}")
    listed = data["operations"]
    if not isinstance(listed, list):
        raise InputError(f"operations: a list is needed here, not {_shown(listed)}")
    return [_operation(item, f"operations.{index}") for index, item in enumerate(listed)]


def written(operations: Collection[Operation]) -> dict[str, Any]:
    """A plan as plain data, defaults left out; refused where a selector has no text."""
    for number, op in enumerate(operations):
        for role, selector in op.selectors().items():
            if not is_its_text(selector):
                raise InputError(
                    f"operations.{number}.{role}: {selector} scores by a function or a vector of "
                    'yours, which has no text: use norm, cosine("word") or attention(…), or keep '
                    "the plan in Python"
                )
    return {
        "operations": [{"op": op.op, **op.model_dump(exclude_defaults=True)} for op in operations]
    }


def _operation(item: Any, path: str) -> Operation:
    if not isinstance(item, dict):
        raise InputError(
            f"{path}: an operation is written {{op: zero-ffn, layers: all}}, not {_shown(item)}"
        )
    name = item.get("op")
    kind = OPERATIONS.get(name) if isinstance(name, str) else None
    if kind is None:
        what = f"no operation is called {name!r}" if "op" in item else "the key 'op' is missing"
        near = difflib.get_close_matches(str(name), OPERATIONS, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"{path}.op: {what}{hint}; there are: {', '.join(sorted(OPERATIONS))}")
    if odd := [key for key in item if not isinstance(key, str)]:
        raise InputError(f"{path}: the key {odd[0]!r} is no text; YAML needs quotes around it")
    operation = kind.__new__(kind)
    try:
        # Not the operation's own constructor, which does not know the path.
        BaseModel.__init__(operation, **item)
    except ValidationError as error:
        raise InputError(explain(error, kind, path)) from None
    return operation


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value!r}"
