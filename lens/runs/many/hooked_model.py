"""A transformers model as a host of programs: what hooks on it share in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .some_rows import SomeRows


@dataclass(eq=False)
class HookedModel:
    """One pass of a transformers model with hooks on it.

    Attributes:
        model: The transformers model.
        store: What steps leave to one another.
        rows: The rows that the layer which is running is computed for; None for all.
        whole: Layers whose FFN has to be computed for all rows, because somebody keeps it.
        first: The layer in which the prompt of a generation starts: before it, steps on the prompt
            have been carried out in another pass.
        states: What was read, by ``site.layer``.
    """

    model: nn.Module
    store: dict[str, Any] = field(default_factory=dict)
    rows: SomeRows | None = None
    whole: frozenset[int] = frozenset()
    first: int = 0
    states: dict[str, Tensor] = field(default_factory=dict)

    def show(self, rows: SomeRows | None) -> None:
        """Say for which rows the layer is computed that runs next."""
        self.rows = rows


def read_at(module: nn.Module, side: str, keep: Callable[[Any], None]) -> Any:
    """A hook that reads what a module receives first, or returns."""
    if side == "output":
        return module.register_forward_hook(lambda _, __, output: keep(output))

    def receive(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(args[0] if args else next(iter(kwargs.values())))

    return module.register_forward_pre_hook(receive, with_kwargs=True)
