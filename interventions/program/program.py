"""A compiled plan: typed steps in the plan's order, and what a run has to know about them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

from ...lens.runs.plan_protocol import Touch
from ..engines.engine import engine_of
from .content_key import content_key
from .scope import Scope
from .site import Site
from .stacking import stacked
from .steps import Step, WeightsStep, When


@dataclass(frozen=True, eq=False)
class Program:
    """What a plan compiled to."""

    steps: tuple[Step, ...]  # what is done, in the plan's order
    scope: Scope  # the model, the batch and the kind of pass

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def changes_length(self) -> bool:
        """Whether it changes the length of the sequence, which other programs could not share."""
        return any(step.length_after is not None for step in self.steps)

    @cached_property
    def touches(self) -> tuple[Touch, ...]:
        """What each step touches."""
        known: dict[int, Hashable] = {}
        keys = [content_key(step, known) for step in self.steps]
        # Thousands of plans on one batch have few steps that differ.
        once = self.scope.during.once
        return tuple(
            once(("touch", key), partial(self._touch, step, key))
            for step, key in zip(self.steps, keys, strict=True)
        )

    def _touch(self, step: Step, key: Hashable) -> Touch:
        return Touch(
            layer=step.site.layer,
            part=step.site.part,
            key=key,
            kind=self._kind(step),
            columns=step.positions(),
            reads=step.reads,
            looks_around=step.looks_at() is not None,
            later=self.scope.during.kind == "generation" and step.when == "decode",
        )

    def _kind(self, step: Step) -> Hashable:
        """What a step is, where in which kind of layer, and what of it is set."""
        layers = (*self.scope.model.anatomy.mixer_kinds, "behind all layers")
        place = step.site.part, layers[step.site.layer]
        return (type(step), *place, step.when, step.merges, *_set(step))

    def some(self, chosen: Sequence[int]) -> Program:
        """This program with some of its steps only, by their numbers."""
        return Program(tuple(self.steps[number] for number in chosen), self.scope)

    def stack(self, others: Sequence[Any]) -> Program:
        """This program and others as one, for the batch repeated once per program."""
        programs = [program.steps for program in (self, *others)]
        steps = stacked(programs, self.scope.samples)
        return Program(tuple(steps), replace(self.scope, copies=len(programs)))

    def apply(self, host: Any) -> Any:
        """The host with the program in force; the host itself if the program is empty.

        What that is, the engine of the host says: a copy of an nnsight model, or for hooks and for
        a bridge of TransformerLens a context inside which the program is in force.
        """
        return engine_of(host).apply(self.steps, self.scope, host) if self.steps else host


def _set(step: Step) -> tuple[str, ...]:
    """Names of a step's fields that are set."""
    held = ((field.name, getattr(step, field.name)) for field in fields(step))
    return tuple(name for name, value in held if value is not None and value is not False)


def handed_on(lowered: Sequence[Sequence[Step]]) -> list[list[Step]]:
    """Each operation's steps, where those on the weights of one call go on from one another."""
    made = [list(steps) for steps in lowered]
    last: dict[tuple[Site, When], tuple[int, int]] = {}
    for number, steps in enumerate(made):
        for index, step in enumerate(steps):
            if not isinstance(step, WeightsStep):
                continue
            call = step.site, step.when
            if call in last:
                before, place = last[call]
                made[before][place] = replace(made[before][place], leaves=True)  # type: ignore[call-arg]
                steps[index] = replace(step, takes=True)
            last[call] = number, index
    return made
