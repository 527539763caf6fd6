"""The entries by which nnsight reaches a model's modules, and a pass without those nobody uses.

An entry asks three times in every call whether somebody waits there, about 3 µs in all: with two
hundred modules 4 % of a pass of 14 ms, and more where passes are short, as in decoding. A pass
whose places are known beforehand needs the entries of these and of the model itself. A place that
was forgotten is no wrong number: nnsight ends the run, because what was waited for did not come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import methodcaller
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_FORWARD = methodcaller("get", "forward")


class OwnForward(partial[Any]):
    """What a module runs under its entry, in the place of that for a while."""

    entry: Any

    def __reduce_ex__(self, _: Any) -> Any:
        """A copy that somebody makes meanwhile has the entry."""
        return self.entry.__reduce__()


def is_entry(forward: Any) -> bool:
    """Whether a module's own forward is nnsight's entry, or stands in its place for a while."""
    return type(forward).__module__.startswith("nnsight.") or isinstance(forward, OwnForward)


def own_forwards(modules: Sequence[nn.Module]) -> list[Any]:
    """The forward that each module has beside its class's; None where it has none."""
    return [*map(_FORWARD, map(vars, modules))]


class Entries:
    """The entries of a model's parts, and what stands in their place where nobody looks."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._forwards = own_forwards(modules)
        self._own = {}
        for module in modules:
            held = vars(module)
            entry, state = held.get("forward"), held.get("__nnsight__")
            # Around what accelerate hooks, the entry calls the hook.
            if state is not None and "_hf_hook" not in held and is_entry(entry):
                own = OwnForward(state.original, module)
                own.entry = entry
                self._own[id(module)] = held, own

    def are_of(self, modules: Sequence[nn.Module]) -> bool:
        """Whether these are still the same parts, under the same entries."""
        return modules == self._modules and own_forwards(modules) == self._forwards

    @contextmanager
    def only(self, entered: Collection[nn.Module]) -> Iterator[None]:
        """Only these have their entry inside."""
        left = self._own.copy()
        for module in entered:
            left.pop(id(module), None)
        for held, own in left.values():
            held["forward"] = own
        try:
            yield
        finally:
            for held, own in left.values():
                if held.get("forward") is own:
                    held["forward"] = own.entry


# By model; of its parts only, which do not keep the model itself alive.
_ENTRIES: WeakKeyDictionary[nn.Module, Entries] = WeakKeyDictionary()


def only_entries(
    modules: Sequence[nn.Module], entered: Collection[nn.Module]
) -> AbstractContextManager[None]:
    """A model with the entries of some modules only, and its own.

    Args:
        modules: All its modules, itself first.
        entered: Those that nnsight is to reach.
    """
    model, *parts = modules
    known = _ENTRIES.get(model)
    if known is None or not known.are_of(parts):
        known = _ENTRIES[model] = Entries(parts)
    return known.only(entered)
