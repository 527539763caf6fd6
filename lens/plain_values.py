"""Values that go into JSON and come back as they went, tuples and keys that are no text included.

JSON makes lists of tuples and text of every key, without a word. Both are written with a tag here,
and what has no such form is refused with its place, where ``json`` names only its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import InputError

_TUPLE, _MAPPING = "__tuple__", "__mapping__"


def to_json(value: Any, where: str) -> Any:
    """The value in a form for ``json.dumps``."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [to_json(one, f"{where}[{index}]") for index, one in enumerate(value)]
        return items if isinstance(value, list) else {_TUPLE: items}
    if isinstance(value, Mapping):
        pairs = [(key, to_json(one, f"{where}[{key!r}]")) for key, one in value.items()]
        if all(isinstance(key, str) and key not in (_TUPLE, _MAPPING) for key, _ in pairs):
            return dict(pairs)
        return {_MAPPING: [[to_json(key, f"a key of {where}"), one] for key, one in pairs]}
    raise InputError(
        f"{where} cannot be saved: it is a {type(value).__module__}.{type(value).__qualname__}, "
        "and what is saved is None, bools, numbers, text, and lists, tuples and mappings of these"
    )


def from_json(value: Any) -> Any:
    """What was given to :func:`to_json`."""
    if isinstance(value, list):
        return [from_json(one) for one in value]
    if isinstance(value, dict):
        if value.keys() == {_TUPLE}:
            return tuple(from_json(one) for one in value[_TUPLE])
        if value.keys() == {_MAPPING}:
            return {from_json(key): from_json(one) for key, one in value[_MAPPING]}
        return {key: from_json(one) for key, one in value.items()}
    return value
