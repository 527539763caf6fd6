"""The run-time type checker of the test suite: beartype, read as type checkers read the hints.

jaxtyping's import hook asks for it around every function, and compares the axes that hints name.
That costs ten times what the check itself does, and most functions name no axes: so these have the
check alone. All tests together take little more than half as long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from inspect import isfunction
from types import SimpleNamespace
from typing import Any, get_type_hints

import jaxtyping
import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype
from numpy.typing import NDArray

check = beartype(
    conf=BeartypeConf(
        # int is accepted where float is meant.
        is_pep484_tower=True,
        # Every array of text has a dtype with a length, and beartype compares dtypes exactly.
        hint_overrides=FrozenDict({NDArray[np.str_]: np.ndarray}),
    )
)
_with_axes = jaxtyping.jaxtyped
_seen: set[Any] = set()


@check
def _warm_up(number: int) -> int:
    """Makes beartype read all of itself now: once nnsight is imported, it no longer can.

    nnsight hangs ``save`` on ``object``, and beartype lists the methods of ``object`` in a set.
    """
    return number


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The hints of a function as objects; Any where a name is not there when it is defined.

    What only type checkers import has no object, and what stands further down has none yet.
    """
    return {name: _hint(hint, function) for name, hint in function.__annotations__.items()}


def _hint(hint: Any, function: Callable[..., Any]) -> Any:
    holder = SimpleNamespace(__annotations__={"hint": hint})
    try:
        return get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)[
            "hint"
        ]
    # Whatever evaluating a text raises.
    except Exception:
        return Any


def without_axes(function: Callable[..., Any], typechecker: Callable[..., Any]) -> Any:
    """A function checked by its hints, which are as they were for everybody else.

    What beartype makes has objects of its own as defaults. nnsight sends functions by their source,
    with their defaults; behind a frame they are as they were written.
    """
    written = function.__annotations__
    function.__annotations__ = hints_of(function)
    try:
        made = typechecker(function)
    finally:
        function.__annotations__ = written

    @wraps(function)
    def frame(*args: Any, **kwargs: Any) -> Any:
        run = function if jaxtyping.config.jaxtyping_disable else made
        return run(*args, **kwargs)

    return frame


def checked(fn: Any = None, *, typechecker: Any) -> Any:
    """In the place of `jaxtyping.jaxtyped`: what names no axes is checked without them."""
    if fn is None:
        return partial(checked, typechecker=typechecker)
    made = fn.__init__ if is_dataclass(fn) else fn
    if "<locals>" in fn.__qualname__:
        # Made anew in every call of what it stands in: the first one is checked.
        if (code := getattr(made, "__code__", None)) in _seen:
            return fn
        _seen.add(code)
    if not isfunction(made) or "jaxtyping." in repr(hints_of(made)):
        return _with_axes(fn, typechecker=typechecker)
    if made is fn:
        return without_axes(fn, typechecker)
    fn.__init__ = without_axes(made, typechecker)
    return fn


jaxtyping.jaxtyped = checked
