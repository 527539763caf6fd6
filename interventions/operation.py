"""What every operation is: a small frozen declaration that lowers itself to steps at sites.

An operation knows nothing of engines: `lower` turns it into steps on module paths, and the same
steps run wherever an engine can bind those paths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ..lens.errors import InputError
from .selector_text import parse_selector
from .selectors import Selector
from .target import Step, Target

Phase = Literal["prefill", "decode", "all"]


def _canonical_tokens(tokens: Any) -> str:
    if isinstance(tokens, Selector):
        return str(tokens)
    if isinstance(tokens, str):
        return str(parse_selector(tokens.strip()))
    raise ValueError(f"tokens {tokens!r}: give a selector or its text, for instance 'visual'")


Tokens = Annotated[str, BeforeValidator(_canonical_tokens)]


def explain(error: ValidationError) -> str:
    """The first fault of a failed validation: where it is and what is wrong there."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason


class Operation(BaseModel, ABC):
    """One declared change.

    Attributes:
        op: Which operation this is, in YAML and JSON.
        phase: ``prefill`` acts on the prompt, ``decode`` on the tokens generated after it,
            ``all`` on both.
        allow_empty: Whether it may match no token; otherwise that is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: str
    phase: Phase = "prefill"
    allow_empty: bool = False

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(f"{type(self).__name__}: {explain(error)}") from None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return self.model_dump(exclude_defaults=True).items()

    @abstractmethod
    def lower(self, target: Target) -> list[Step]:
        """The steps that carry this operation out on one model and batch.

        Raises:
            InputError: A layer that does not exist, or tokens that match nothing.
            Unsupported: What this model cannot do, with the reason.
        """


class TokenOperation(Operation, ABC):
    """An operation on one set of tokens.

    Attributes:
        tokens: Which tokens it acts on, in the selector language.
    """

    tokens: Tokens = "visual"
