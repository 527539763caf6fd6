"""Engines: what applies a program to a host. Each is one file in which it registers itself.

The files of this folder are imported when the first host asks for its engine, and not before.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ...lens.errors import Unsupported
from ..program.scope import Scope, Subject
from ..program.steps import Step


class Engine(ABC):
    """Binds sites to a host's own places and carries steps out there.

    Attributes:
        chooses: Whether it can choose a step's tokens in the pass in which they are edited.
    """

    chooses: ClassVar[bool] = False

    @abstractmethod
    def hosts(self, host: Any) -> bool:
        """Whether this is a host of this engine."""

    @abstractmethod
    def apply(self, steps: Sequence[Step], scope: Scope, host: Any) -> Any:
        """The host with the steps in force, or a context inside which they are."""

    def leaves_out(self, steps: Sequence[Step], scope: Scope) -> frozenset[int]:
        """The places among the steps of those whose tokens it does not compute; none by default."""
        return frozenset()

    def check_attention(
        self, edit: Literal["mask", "weights"], layer: int, model: Subject, by: str
    ) -> None:
        """Refuse, while a plan is compiled, an edit of attention that has no form in a layer."""
        raise Unsupported(f"{by}: edits of attention have no form in {type(self).__name__}")


ENGINES: dict[str, Engine] = {}
Kind = TypeVar("Kind", bound=type[Engine])


def engine(kind: Kind) -> Kind:
    """Register an engine under its name, which no other one may have."""
    if kind.__name__ in ENGINES:
        raise ValueError(f"there is an engine {kind.__name__!r} already")
    ENGINES[kind.__name__] = kind()
    return kind


def engine_of(host: Any) -> Engine:
    """The engine whose host this is."""
    _find()
    for found in ENGINES.values():
        if found.hosts(host):
            return found
    raise Unsupported(
        f"no engine applies programs to {type(host).__name__}; there are: {', '.join(ENGINES)}"
    )


@cache
def _find() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f".{module.name}", __package__)
