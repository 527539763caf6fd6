"""What a run asks of a plan: compile to a program, which is then applied to a host.

A run knows a program by what its steps touch, whether it changes the length of the sequence, how it
stacks with others, which part of it is left, and how it is applied. It knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from ..errors import InputError
from ..inputs.batch import Batch, refuse_unencoded

# What happens in a layer, in this order: the stream enters, the token mixer gets its arguments, its
# heads gather, and each sublayer returns what it adds.
PARTS = ("entry", "mixing", "heads", "attention", "ffn")

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class OneCall:
    """Plans that one call compiles for the same batch, one after the other."""

    plans: tuple[Any, ...]  # all of them, None for those that change nothing
    made: dict[Hashable, Any] = field(default_factory=dict)  # what :meth:`Pass.once` made


@dataclass(frozen=True)
class Pass:
    """Which kind of pass a plan is compiled for."""

    # ``forward`` (one pass over the prompt), ``generation`` (the prompt and what is written behind
    # it, in whatever passes) or ``scoring`` (prompt and given answer in one pass)
    kind: Literal["forward", "generation", "scoring"]
    continuation: int = 0  # tokens appended to the prompt when scoring
    remote: bool | str = False  # as for :meth:`VisualLM.trace`; also of passes that a plan needs
    positions: bool = False  # whether states or logits are returned by their position in the prompt
    traced: bool = False  # whether the user may read states in it, in an open trace
    own: bool = False  # whether it has one program only, which may find out in it what it needs
    weights: bool = False  # whether the attention weights in force are read in it
    # The plans that are compiled in the same call, so that what all of them need is made once
    call: OneCall | None = field(default=None, compare=False, repr=False)

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns, made once for all plans that are compiled in one call."""
        if self.call is None:
            return make()
        if what not in self.call.made:
            self.call.made[what] = make()
        found: T = self.call.made[what]
        return found


@dataclass(frozen=True, eq=False)
class Touch:
    """What one step reads or changes, as far as sharing work with other programs goes.

    Attributes:
        layer: The layer; the number of layers for the stream behind the last one.
        part: One of :data:`PARTS`, or ``decoder``.
        key: Equal for two steps that do the same there.
        kind: Equal for two steps of which one speaks for how the other is shared.
        columns: Sequence positions touched in any sample, in order; None for all.
        reads: Whether it only reads.
        looks_around: Whether what it does depends on other tokens' states there.
        later: Whether it acts in passes behind the prompt's only.
    """

    layer: int
    part: str
    key: Hashable
    kind: Hashable
    columns: Tensor | None
    reads: bool
    looks_around: bool
    later: bool = False


@runtime_checkable
class Program(Protocol):
    """What a plan compiled to, for one model, one batch and one kind of pass."""

    @property
    def changes_length(self) -> bool:
        """Whether it changes the length of the sequence, which other programs could not share."""

    @property
    def touches(self) -> tuple[Touch, ...]:
        """What each of its steps touches."""
        ...

    def some(self, chosen: Sequence[int]) -> Program:
        """The program with some of its steps only, by their numbers."""

    def __len__(self) -> int:
        """How many steps it has; an empty program changes nothing."""

    def stack(self, others: Sequence[Any]) -> Program:
        """This program and others of its kind as one, for the batch repeated once per program."""

    def apply(self, host: Any) -> Any:
        """The host with the program in force; the host itself if the program is empty."""


@runtime_checkable
class Intervention(Protocol):
    """What can be in force in a run (`interventions.Plan` is one)."""

    def compile(self, model: Any, batch: Batch, during: Pass) -> Program:
        """The program for one model, batch and kind of pass."""


def compiled(plan: Intervention | None, model: Any, batch: Batch, during: Pass) -> Program | None:
    """The program of a plan; None for None.

    Raises:
        InputError: Something else than a plan, such as an operation without one.
    """
    if plan is None:
        return None
    if not isinstance(plan, Intervention):
        raise InputError(f"{plan!r} is no plan: write Plan(operation, …)")
    return plan.compile(model, batch, during)


def in_force(plan: Intervention | None, model: Any, batch: Batch, during: Pass) -> Any:
    """The nnsight model with a plan in force; as it is for None.

    Raises:
        InputError: The batch has ids that the model does not know, or the plan is none.
    """
    refuse_unencoded(batch)
    model.anatomy.check_ids(batch.inputs, model.tokenizer)
    program = compiled(plan, model, batch, replace(during, own=True))
    return model.nn if program is None else program.apply(model.nn)
