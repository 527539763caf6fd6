"""What every operation is: a small frozen declaration that lowers itself to steps at sites.

An operation knows nothing of engines: `lower` turns it into steps on module paths, and the same
steps run wherever an engine can bind those paths.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ..selectors.parser import parse_selector
from ..selectors.selectors import NAMES, Selection, Selector
from .target import Step, Target
from .wording import Telling

Phase = Literal["prefill", "decode", "all"]


def _canonical_tokens(tokens: Any) -> str:
    if isinstance(tokens, Selector):
        return str(tokens)
    if isinstance(tokens, str):
        return str(parse_selector(tokens.strip()))
    raise ValueError(f"tokens {tokens!r}: give a selector or its text, for instance 'visual'")


# What a schema can say of a selector: its words. Names are joined from words by hyphens, and what
# stands before a bracket or an equals sign is the parser's to know.
_WORDS = "|".join(sorted({word for name in NAMES for word in name.split("-")}))
_TEXT = rf"^(?:(?:{_WORDS}|\d+|[A-Za-z]+(?=\s*[\[(=]))(?!\w)|[\s&|~()\[\]:,=-])+$"
_SELECTOR = BeforeValidator(_canonical_tokens)
Tokens = Annotated[str, _SELECTOR, WithJsonSchema({"type": "string", "pattern": _TEXT})]


def in_phase(selection: Selection, phase: str) -> Selection:
    """The part of a selection that a phase means."""
    prompt = selection.prompt & (phase != "decode")
    return Selection(prompt, selection.generated & (phase != "prefill"))


def explain(error: ValidationError, kind: type[BaseModel], path: str) -> str:
    """What is wrong in a failed validation, one line for each fault, each with its path.

    Args:
        error: The failed validation.
        kind: The operation that was to be made.
        path: Where it stands, for instance ``operations.2``.
    """
    keys = sorted(kind.model_fields)
    lines = []
    for fault in error.errors():
        place = ".".join((path, *map(str, fault["loc"])))
        reason = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(fault["loc"][-1]), keys, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            reason = f"there is no such key{hint}; the keys are {', '.join(keys)}"
        elif fault["type"] == "missing":
            reason = "is missing and has to be given"
        elif not fault["type"].startswith(("value_error", "assertion")):
            reason += f", not {fault['input']!r}"
        lines.append(f"{place}: {reason}")
    return "\n".join(lines)


class Operation(BaseModel, ABC):
    """One declared change.

    Attributes:
        op: Which operation this is, in YAML and JSON.
        phase: ``prefill`` acts on the prompt, ``decode`` on the tokens generated after it,
            ``all`` on both.
        allow_empty: Whether it may match no token; otherwise that is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    op: str
    phase: Phase = "prefill"
    allow_empty: bool = False

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(explain(error, type(self), type(self).__name__)) from None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return self.model_dump(exclude_defaults=True).items()

    @abstractmethod
    def lower(self, target: Target) -> list[Step]:
        """The steps that carry this operation out on one model and batch.

        Raises:
            InputError: A layer that does not exist, or tokens that match nothing.
            Unsupported: What this model cannot do, with the reason.
        """

    def away(self, n_layers: int) -> range:
        """Layers in which the operation's tokens are not there for anybody; none by default."""
        return range(0)

    def describe(self, telling: Telling) -> str:
        """What this operation does, as one sentence."""
        return telling.declared(self)

    @classmethod
    def roles(cls) -> tuple[str, ...]:
        """The settings that are selectors, for instance ``queries`` and ``keys``."""
        found = []
        for name, field in cls.model_fields.items():
            # A setting that may be None has its marks one level further in.
            inner = (getattr(part, "__metadata__", ()) for part in get_args(field.annotation))
            if any(_SELECTOR in marks for marks in (field.metadata, *inner)):
                found.append(name)
        return tuple(found)

    def selections(self, batch: Batch) -> dict[str, Selection]:
        """Per role the tokens that are meant, those outside the phase left out."""
        # Tokens enter and leave in the prompt; generated ones are always there.
        moving = type(self).away is not Operation.away
        found = {}
        for role in self.roles():
            if (text := getattr(self, role)) is not None:
                selection = parse_selector(text).select(batch)
                acting = role in ("tokens", "queries")
                phase = "prefill" if moving else self.phase if acting else "all"
                found[role] = in_phase(selection, phase)
        return found


class TokenOperation(Operation, ABC):
    """An operation on one set of tokens.

    Attributes:
        tokens: Which tokens it acts on, in the selector language.
    """

    tokens: Tokens = "visual"
