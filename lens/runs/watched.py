"""Which modules a pass hands over to nnsight: those that somebody looks into.

nnsight asks three times per module and pass whether anybody waits there. In a pass of ours it is
known beforehand who does: what is read, and what a program's edits name. All other modules run
their own forward meanwhile, which is what nnsight's entry would have run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..opening.present_state import is_entry, modules_of

# By host the paths that its stored edits ask for, and how many edits that is said of.
_ASKED: WeakKeyDictionary[Any, tuple[int, frozenset[str]]] = WeakKeyDictionary()
_PATHS = ("path", "whole", "decoder")


def paths_in(plain: Mapping[str, Any]) -> set[str]:
    """The modules that a plain step or site names."""
    found = {plain[name] for name in _PATHS if name in plain}
    return found | {layer["path"] for layer in plain.get("layers", ())}


def ask_only(host: Any, paths: Collection[str]) -> None:
    """Say which modules all edits on a host ask for, as long as no other is stored on it."""
    _ASKED[host] = len(host._edits), frozenset(paths)


def asked_of(host: Any, sites: Sequence[Mapping[str, Any]] = ()) -> frozenset[str] | None:
    """The modules that a pass on a host looks into, its sites included; None where any may be."""
    edits, asked = _ASKED.get(host, (0, frozenset()))
    shards = host.interleaver.fragments
    if len(host._edits) != edits or (shards is not None and shards.enabled):
        return None
    return asked.union(*map(paths_in, sites))


@contextmanager
def watched(host: Any, model: nn.Module, paths: frozenset[str] | None) -> Iterator[None]:
    """Only the model itself and the modules at these paths are handed to nnsight while inside."""
    if paths is None:
        yield
        return
    seen = {model, *(host.get(path)._module for path in paths)}
    aside = []
    for module in modules_of(model):
        held = vars(module)
        entry = held.get("forward")
        # A forward of the module's own, or one that moves weights, stays under its entry.
        if not is_entry(entry) or "_hf_hook" in held or module in seen:
            continue
        usual = type(module).forward
        if entry.state.original is usual:
            # In the same slot: the order of the attributes stays, too.
            held["forward"] = MethodType(usual, module)
            aside.append((held, entry))
    try:
        yield
    finally:
        for held, entry in aside:
            held["forward"] = entry
