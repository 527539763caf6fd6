"""Computing one decoder layer for some rows of the sequence only.

Everything in a layer but its token mixer works on each row by itself. A mixer with attention needs
the keys and values of all rows, but queries only of those that are wanted; and a cache is where
every attention hands over its keys and values, whatever its modules are called. So a layer is given
the wanted rows of all its arguments, and a cache that has the other rows' keys and values.

Which axis of an argument goes along the sequence is told by its length. That may go wrong, like all
else here, so a layer that is computed like this is compared with one that is not, the first time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
Forward = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
CACHES = ("past_key_values", "past_key_value")


class CannotCut(Exception):
    """A layer cannot be computed for some rows only."""


class SomeRows:
    """Some rows of a sequence, and the tensors that were cut to them.

    Args:
        columns: The sequence positions, in order.
        length: Tokens of the sequence.
        samples: Rows of the batch.
    """

    def __init__(self, columns: Tensor, length: int, samples: int) -> None:
        self.columns, self.length, self.samples = columns, length, samples
        # The tensor that was cut and the cut one, by the id of the latter.
        self._made: dict[int, tuple[Any, Tensor]] = {}

    @property
    def are_last(self) -> bool:
        """Whether it is the last row alone, which sees all others without a mask."""
        return len(self.columns) == 1 and int(self.columns[0]) == self.length - 1

    def cut(self, value: Any) -> Any:
        """The rows of an argument, however nested."""
        if isinstance(value, Tensor):
            axis = _axis(value, self.length)
            if axis is None:
                return value
            return self._remember(value, value.index_select(axis, self._index(value)))
        if type(value) is dict:
            return {name: self.cut(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(map(self.cut, value))
        return value

    def masked(self, given: Arguments, causal: bool) -> Any:
        """The rows of a layer's mask over keys, made where a kernel would have made its own."""
        args, kwargs = given
        mask = kwargs.get("attention_mask")
        if mask is not None or not causal or self.are_last:
            return self.cut(mask)
        states = args[0] if args else kwargs["hidden_states"]
        keys = torch.arange(self.length, device=states.device)
        made = (keys <= self._index(states)[:, None])[None, None]
        return self._remember(None, made)

    def whole(self, value: Any) -> Any:
        """What a value of these rows is among all rows; zero where nothing was computed."""
        if isinstance(value, Tensor):
            if id(value) in self._made:
                return self._made[id(value)][0]
            states = self._by_sample(value, len(self.columns))
            if states is None:
                return value
            full = states.new_zeros(self.samples, self.length, states.shape[-1])
            full.index_copy_(1, self._index(value), states)
            return full if value.ndim == 3 else full.flatten(0, 1)
        if type(value) is dict:
            return {name: self.whole(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(map(self.whole, value))
        return value

    def part(self, value: Any) -> Any:
        """These rows of a value that has all rows: the opposite of :meth:`whole`."""
        if isinstance(value, Tensor):
            for given, cut in self._made.values():
                if given is value:
                    return cut
            states = self._by_sample(value, self.length)
            if states is None:
                return self.cut(value)
            rows = states.index_select(1, self._index(value))
            return rows if value.ndim == 3 else rows.flatten(0, 1)
        if type(value) is dict:
            return {name: self.part(part) for name, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(map(self.part, value))
        return value

    def put_into(self, full: Tensor, rows: Tensor) -> Tensor:
        """A copy of states ``[sample, token, d]`` with these rows replaced."""
        if rows.shape[:2] != (full.shape[0], len(self.columns)):
            raise CannotCut
        return full.index_copy(1, self._index(full), rows)

    def _by_sample(self, value: Tensor, tokens: int) -> Tensor | None:
        """States ``[sample, token, d]``, also of one long row; None if it is something else."""
        if value.ndim == 3 and value.shape[:2] == (self.samples, tokens):
            return value
        if value.ndim == 2 and value.shape[0] == self.samples * tokens:
            return value.view(self.samples, tokens, value.shape[-1])
        return None

    def _remember(self, given: Any, cut: Tensor) -> Tensor:
        self._made[id(cut)] = given, cut
        return cut

    def _index(self, like: Tensor) -> Tensor:
        return self.columns.to(like.device)


def _axis(value: Tensor, length: int) -> int | None:
    """The axis of an argument that goes along the sequence; of a mask the one of queries."""
    candidates = {1: (0,), 2: (1, 0)}.get(value.ndim, (value.ndim - 2, 1, value.ndim - 1))
    return next((axis for axis in candidates if value.shape[axis] == length), None)


class _Ended(Exception):
    """The keys and values are there; nothing else of the layer is wanted."""


class _Ending:
    """A cache that keeps the first keys and values and ends the layer there."""

    def __init__(self) -> None:
        self.kept: KeysValues | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> KeysValues:
        """Keep them."""
        self.kept = keys, values
        raise _Ended


class Keeping:
    """A cache that keeps the keys and values, and lets the layer go on with them."""

    def __init__(self) -> None:
        self.kept: KeysValues | None = None
        self.calls = 0

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> KeysValues:
        """Keep them."""
        self.kept = keys, values
        self.calls += 1
        return keys, values


class _Filling:
    """A cache that puts some rows' keys and values among those of all rows."""

    def __init__(self, known: KeysValues, rows: SomeRows | None) -> None:
        self.known, self.rows = known, rows
        self.calls = 0

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> KeysValues:
        """All rows' keys and values."""
        self.calls += 1
        if self.rows is None:
            return self.known
        return filled(self.known, (keys, values), self.rows)


def filled(known: KeysValues, made: KeysValues, rows: SomeRows) -> KeysValues:
    """All rows' keys and values, some of which were made anew."""
    index = rows.columns.to(known[0].device)
    keys, values = (old.index_copy(-2, index, new) for old, new in zip(known, made, strict=True))
    return keys, values


def cache_name(kwargs: dict[str, Any]) -> str:
    """The name under which a layer takes its cache, which must be free."""
    names = [name for name in CACHES if name in kwargs]
    if len(names) != 1 or kwargs[names[0]] is not None:
        raise CannotCut
    return names[0]


def on_rows(run: Forward, given: Arguments, rows: SomeRows) -> Any:
    """What a layer returns for some rows, if its mixer needs no other rows."""
    args, kwargs = given
    return run(*rows.cut(args), **rows.cut(kwargs))


def keys_and_values(
    run: Forward, given: Arguments, rows: SomeRows | None, causal: bool
) -> KeysValues:
    """The keys and values that a layer makes of some rows, or of all.

    Raises:
        CannotCut: The layer takes no cache, or gives it none.
    """
    args, kwargs = given
    name, ending = cache_name(kwargs), _Ending()
    if rows is not None:
        mask = rows.masked(given, causal)
        args, kwargs = rows.cut(args), {**rows.cut(kwargs), "attention_mask": mask}
    with suppress(_Ended):
        run(*args, **{**kwargs, name: ending})
    if ending.kept is None:
        raise CannotCut
    return ending.kept


def on_rows_with_keys(
    run: Forward, given: Arguments, rows: SomeRows, known: KeysValues, *, own: bool, causal: bool
) -> Any:
    """What a layer returns for some rows, whose queries see the keys of all.

    Args:
        run: The layer's forward.
        given: Its arguments for all rows.
        rows: The rows that are wanted.
        known: All rows' keys and values.
        own: Whether those of the wanted rows take their place among them.
        causal: Whether the kernel makes a causal mask where none is given.

    Raises:
        CannotCut: The layer takes no cache, or is not one that can be computed so.
    """
    args, kwargs = given
    if "attention_mask" not in kwargs:
        raise CannotCut
    cache = _Filling(known, rows if own else None)
    cut = {**rows.cut(kwargs), "attention_mask": rows.masked(given, causal)}
    output = run(*rows.cut(args), **{**cut, cache_name(kwargs): cache})
    if cache.calls != 1:
        raise CannotCut
    return output
