"""A compiled plan: its steps, and what a run has to know about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...lens.anatomy import Anatomy
from ..engines.nnsight import store_edits
from ..operations.target import Step
from .stacking import first_layer, joined, stands_alone


@dataclass(frozen=True, eq=False)
class Program:
    """What a plan compiled to, for one model, one batch and one kind of pass.

    Attributes:
        steps: What is done, in the plan's order.
        anatomy: Where things are in the model.
        samples: Rows of the batch.
    """

    steps: tuple[Step, ...]
    anatomy: Anatomy
    samples: int

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def first_layer(self) -> int:
        """First layer that is read or changed: ``n_layers`` behind all, -1 before the decoder."""
        return first_layer(self.steps, self.anatomy)

    @property
    def changes_length(self) -> bool:
        """Whether it changes the length of the sequence, which other programs could not share."""
        return stands_alone(self.steps)

    def stack(self, others: Sequence[Program]) -> Program:
        """This program and others as one, for the batch repeated once per program.

        Raises:
            Unsupported: A step that cannot share a pass.
        """
        programs = [program.steps for program in (self, *others)]
        steps = joined(programs, self.samples)
        return Program(tuple(steps), self.anatomy, self.samples * len(programs))

    def apply(self, host: Any) -> Any:
        """The host with the program in force; the host itself if the program is empty."""
        return store_edits(host, list(self.steps)) if self.steps else host
