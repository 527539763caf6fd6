"""Into which modules a pass looks, where that is known before it starts.

It is known of our own: they find their modules by the paths in the plain values that they are
given. Of a user's block, and of edits that somebody else has stored on the model, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..opening.wrapping import module_path

# By copy of an nnsight model, all that the edits stored on it are given.
_GIVEN: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()


def looks_only(host: Any, like: Any, given: Any) -> None:
    """Say of a copy of a host that edits stored on it look only where what they are given says.

    Args:
        host: The copy.
        like: What it is a copy of.
        given: Plain values: paths of modules as nnsight has them, in dicts and lists.
    """
    before = _given(like)
    if before is not None:
        _GIVEN[host] = (*before, given)


def entered_modules(host: Any, given: Any = ()) -> list[nn.Module] | None:
    """The modules that the host's edits look into, and those that other values name.

    None if it is not known. The model itself is always among them.
    """
    before = _given(host)
    # Of a model in parts on several devices, entries put tensors together too.
    parts = host.interleaver.fragments
    if before is None or (parts is not None and parts.enabled):
        return None
    model = host._module
    found = [model]
    for text in set(_texts((*before, given))):
        path = module_path(text)
        # Most words are no paths.
        if path.partition(".")[0] in model._modules:
            with suppress(AttributeError):
                found.append(model.get_submodule(path))
    return found


def _given(host: Any) -> tuple[Any, ...] | None:
    """What the edits of a host are given; None if there are some of which that is not known."""
    return _GIVEN.get(host) if host._edits else ()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
