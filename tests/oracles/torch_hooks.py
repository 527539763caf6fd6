"""Torch hooks that change the states a module is given or returns, and are there for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

Change = Callable[[Tensor], Tensor]


def entered(args: Any, kwargs: Any) -> Tensor:
    """The residual stream among a layer's arguments."""
    return args[0] if args else kwargs["hidden_states"]


def entering(change: Change) -> Callable[..., Any]:
    """A hook before a module, with its named arguments."""

    def hook(_: Any, args: Any, kwargs: Any) -> Any:
        made = change(entered(args, kwargs))
        return ((made, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": made})

    return hook


def leaving(change: Change) -> Callable[..., Any]:
    """A hook behind a module, which may return its states in a tuple."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook


@contextmanager
def attached(handles: Iterable[Any]) -> Iterator[None]:
    """The hooks are there while inside."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield
