"""What every operation is: a small frozen declaration that lowers itself to steps at sites.

An operation knows nothing of engines: `lower` turns it into steps, and the same steps run wherever
an engine can bind their sites.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict, TypeVar, get_args

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.selectors.parser import is_its_text, parse_selector
from ...lens.selectors.scores import Scored
from ...lens.selectors.selector_types import Name, Selection, Selector
from ..layers_and_heads.heads import HeadNumbers
from ..layers_and_heads.layers import Layers
from ..program.steps import Step, When
from .donor import Places
from .needs import Need
from .phrases import Phrases
from .plain_names import PlainNames, plain_signature
from .target import Target

Phase = Literal["prefill", "decode", "all"]


def _scored_by_function(tokens: Selector) -> bool:
    """Whether all that keeps a selector from having a text is a function of the user's."""
    home = {type(node).__module__.rpartition(".")[0] for node in tokens.nodes()}
    python = [node for node in tokens.nodes() if isinstance(node, Scored) and not node.has_text]
    return bool(python) and home == {Selector.__module__.rpartition(".")[0]}


def _parsed(tokens: Any) -> Selector:
    if isinstance(tokens, Selector):
        if not (is_its_text(tokens) or _scored_by_function(tokens)):
            raise ValueError(
                f"{type(tokens).__name__} cannot be written down as text that says the same, so "
                "neither could a plan with it: use the selector language"
            )
        return tokens
    if isinstance(tokens, str):
        return parse_selector(tokens.strip())
    raise ValueError(f"tokens {tokens!r}: give a selector or its text, for instance 'visual'")


# What a schema can say of a selector: words and numbers with something between them, and text in
# quotes. Which words mean something is the parser's to know, and the batch's.
_QUOTED = r'"[^"#\\]+"'
_TEXT = rf"^\s*(?:(?:[A-Za-z_]\w*|[\d.]+)(?!\s*\w)|{_QUOTED}|[\s&|~@()\[\]:,=-])+$"
_SELECTOR = BeforeValidator(_parsed)
if TYPE_CHECKING:
    # Taken as text too, and kept as selectors and layers, which no type of a field can say.
    Tokens: TypeAlias = Any
    InLayers: TypeAlias = Any
    InHeads: TypeAlias = Any
else:
    Tokens = Annotated[Selector, _SELECTOR, WithJsonSchema({"type": "string", "pattern": _TEXT})]
    InLayers = Layers
    InHeads = HeadNumbers


def explain(error: ValidationError, kind: type[BaseModel], path: str) -> str:
    """What is wrong in a failed validation, one line for each fault, each with its path."""
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


class Operation(BaseModel, ABC, metaclass=PlainNames):
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
        # A number of numpy is that number, and compares and is written like it.
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in fields.items()}
        try:
            super().__init__(**plain)
        except ValidationError as error:
            raise InputError(explain(error, type(self), type(self).__name__)) from None

    def __dir__(self) -> list[str]:
        return dir(type(self))

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return self.model_dump(exclude_defaults=True).items()

    @abstractmethod
    def lower(self, target: Target) -> Sequence[Step]:
        """The steps that carry this operation out on one model and batch.

        Raises:
            InputError: A layer that does not exist, or tokens that match nothing.
            Unsupported: What this model cannot do, with the reason.
        """

    @abstractmethod
    def describe(self, phrases: Phrases) -> str:
        """What this operation does, as one sentence."""

    def needs(self) -> tuple[Need, ...]:
        """States from other passes that have to be there before it is lowered; none by default."""
        return ()

    def rests_on_anatomy(self) -> bool:
        """Whether its steps follow from the anatomy, the batch and the kind of pass alone."""
        return False

    def absent(self, n_layers: int) -> range:
        """Layers in which the operation's tokens are not there for anybody; none by default."""
        return range(0)

    def where(self) -> str:
        """The layers it acts in, as they are declared."""
        found = getattr(self, "layers", None)
        return str(getattr(self, "layer", "") if found is None else found)

    @property
    def named_layers(self) -> Layers | None:
        """The layers it has to act in, all of which stand for wherever the tokens are.

        None where it has no such setting, and each of its steps stands for itself.
        """
        return getattr(self, "layers", None)

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

    def selectors(self) -> dict[str, Selector]:
        """The selectors that are given, by role."""
        found = {role: getattr(self, role) for role in self.roles()}
        return {role: selector for role, selector in found.items() if selector is not None}

    @property
    def choosing_layer(self) -> int | None:
        """The one layer in which its tokens are chosen, where sets differ by layer; None if many.

        That is the layer it acts in, if that is one; several layers choose each for itself.
        """
        named = None if self.named_layers is None else self.named_layers.named
        return named[0] if isinstance(named, tuple) and len(named) == 1 else None

    def selections(self, batch: Batch) -> dict[str, Selection]:
        """Per role the tokens that are meant, those outside the phase left out."""
        # Tokens are dropped or enter in the prompt; generated ones are always there.
        moving = type(self).absent is not Operation.absent
        found = {}
        for role, selector in self.selectors().items():
            selection = selector.select(batch, self.choosing_layer)
            acting = role in ("tokens", "queries")
            phase = "prefill" if moving else self.phase if acting else "all"
            prompt = selection.prompt & (phase != "decode")
            found[role] = Selection(prompt, selection.generated & (phase != "prefill"))
        return found

    def in_phase(self, selection: Selection, target: Target) -> Selection:
        """The selected tokens that the phase and a kind of pass leave."""
        forward = target.during.kind == "forward"
        if self.phase == "decode" and forward:
            raise InputError(
                f"{self!r} acts while decoding, and a single forward pass decodes nothing: "
                "use generate() or score(), or phase='prefill'"
            )
        prompt, generated = selection.prompt, selection.generated
        if self.phase == "decode":
            prompt = np.zeros_like(prompt)
        if self.phase == "prefill" or forward:
            generated = np.zeros_like(generated)
        return Selection(prompt, generated)


class Place(TypedDict):
    """When and on which tokens a step acts, as a step on tokens takes it."""

    when: When
    rows: torch.Tensor
    columns: torch.Tensor | None


class TokenOperation(Operation, ABC):
    """An operation on one set of tokens.

    Attributes:
        tokens: Which tokens it acts on, in the selector language.
    """

    tokens: Tokens = Name("visual")

    def places(self, target: Target, layer: int) -> list[Place]:
        """Every place that the tokens and the phase select; ``n_layers`` for behind the last layer.

        Refused where nothing is selected, or the layer computes no such tokens in this pass.
        """
        chosen_in = layer if self.choosing_layer is None else self.choosing_layer
        meant = self.in_phase(self.tokens.select(target.batch, chosen_in), target)
        prompt, generated = meant.prompt, meant.generated
        if not (prompt.any() or generated.any()):
            if self.allow_empty:
                return []
            raise InputError(
                f"{self!r}: no token matches {str(self.tokens)!r} in phase "
                f"{self.phase!r}; it would do nothing (allow_empty=True accepts that)"
            )
        rows, columns = np.nonzero(prompt)
        if target.during.kind == "scoring" and generated.any():
            # The answer stands behind the prompt in the same pass.
            behind = target.batch.length + np.arange(target.during.continuation)
            answer_rows = np.repeat(np.flatnonzero(generated), len(behind))
            rows = np.concatenate([rows, answer_rows])
            columns = np.concatenate([columns, np.tile(behind, int(generated.sum()))])
        found = [self.prompt_place(target, (rows, columns), layer)] if len(rows) else []
        if target.during.kind == "generation" and generated.any():
            later = target.tensor(np.flatnonzero(generated))
            found.append({"when": "decode", "rows": later, "columns": None})
        return found

    def prompt_place(self, target: Target, places: Places, layer: int) -> Place:
        """Given samples and positions, in the pass over the prompt."""
        rows, columns = places
        target.check_computed(self, layer, columns)
        when: When = "prefill"
        return {"when": when, "rows": target.tensor(rows), "columns": target.tensor(columns)}


Kind = TypeVar("Kind", bound=type[Operation])
OPERATIONS: dict[str, type[Operation]] = {}


def operation(kind: Kind) -> Kind:
    """Register an operation under its ``op``: plans can be read with it, and schemas know it."""
    name: str = kind.__pydantic_fields__["op"].default
    if name in OPERATIONS:
        raise ValueError(f"there is an operation {name!r} already: {OPERATIONS[name].__name__}")
    OPERATIONS[name] = kind
    kind.__signature__ = plain_signature(kind)
    return kind
