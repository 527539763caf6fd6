"""Which states a plan still uses: followed backwards through the layers, from what is read.

1. Every step that reads or changes states, or hides keys, is a mark at its site (:meth:`Flow.of`).
2. Needed are, behind the last layer, the states of all real tokens, whether or not anybody asks for
   them, but for tokens that were dropped.
3. From there back, layer by layer: states after a layer need what its sublayers add; what is
   gathered by attention needs the keys it can see; a step that overwrites ends the need for what
   was there, and a slot that is used brings the need for what was read into it.
4. What an earlier pass reads for operations that are used is followed through that pass too.

A step whose change is not needed anywhere would be carried out without a murmur and mean nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from einops import rearrange

from ...lens.runs.plan_protocol import PARTS
from ..operations.needs import StatesOf
from ..operations.operation import Operation
from .scope import Scope
from .site import Site
from .steps import Mask, PairStep, Step, wide

Key = TypeVar("Key")


@dataclass(eq=False)
class Mark:
    """One step as it is followed; tokens are ``[sample, token + 1]``, the last those generated."""

    operation: int  # number of its operation in the plan
    step: Step
    tokens: Mask  # tokens it reads or changes; of a mask the queries
    used: bool = False  # whether anybody uses what it changes, filled in by :meth:`Flow.follow`
    # Tokens at which it is used, of a mask the keys, filled in likewise
    acting: Mask | None = None


@dataclass(frozen=True, eq=False)
class Absence:
    """Tokens that are not there in some layers, on behalf of one operation."""

    operation: int
    layers: range
    tokens: Mask


@dataclass(eq=False)
class Used:
    """What is used where, ``[sample, token + 1]`` for each layer."""

    gathering: dict[int, Mask] = field(default_factory=dict)  # tokens whose attention is used
    transformed: dict[int, Mask] = field(default_factory=dict)  # tokens whose FFN output is used
    seen: dict[int, Mask] = field(default_factory=dict)  # tokens whose keys and values are used


@dataclass(frozen=True, eq=False)
class Flow:
    """A lowered plan, ready to be followed."""

    scope: Scope  # model, batch and kind of pass
    marks: tuple[Mark, ...]  # the steps, in the plan's order
    absences: tuple[Absence, ...]  # where tokens are not there
    earlier: dict[int, list[tuple[int, Mask]]]  # by operation: layers and tokens of an earlier pass
    # Per layer which query of the prompt can see which key, ``[sample, query, key]``; without it
    # every earlier token, and in models that look ahead any
    visible: Sequence[Mask] | None = None

    @staticmethod
    def of(
        operations: Sequence[Operation], lowered: Sequence[Sequence[Step]], scope: Scope
    ) -> Flow:
        """The marks and absences of a plan's operations, given the steps of each."""
        samples, length = len(scope.batch), scope.batch.length
        marks = tuple(
            Mark(number, step, tokens)
            for number, steps in enumerate(lowered)
            for step in steps
            if step.site.part in PARTS and (tokens := step.tokens(samples, length)) is not None
        )
        n_layers = scope.model.n_layers
        absences = []
        earlier: dict[int, list[tuple[int, Mask]]] = {}
        for number, operation in enumerate(operations):
            layers, meant = operation.absent(n_layers), operation.selections(scope.batch)
            if layers and "tokens" in meant:
                absences.append(Absence(number, layers, wide(meant["tokens"].prompt)))
            for need in operation.needs():
                if isinstance(need, StatesOf) and need.donor is None:
                    read = wide(need.tokens.select(scope.batch, need.layer).prompt)
                    # What a sublayer adds has gone into the stream that enters the next layer.
                    places = [
                        (layer + (kind != "residual"), read)
                        for kind, layer in need.places(n_layers)
                    ]
                    earlier.setdefault(number, []).extend(places)
        return Flow(scope, marks, tuple(absences), earlier)

    def without(self, operations: Collection[int]) -> Flow:
        """The flow with some operations left out."""
        return Flow(
            self.scope,
            tuple(mark for mark in self.marks if mark.operation not in operations),
            tuple(absence for absence in self.absences if absence.operation not in operations),
            {n: places for n, places in self.earlier.items() if n not in operations},
            self.visible,
        )

    def absent(self, layer: int, but: int | None = None) -> Mask:
        """Tokens that are not there in a layer, on behalf of any operation ``but`` one."""
        found = np.zeros_like(self._everyone())
        for absence in self.absences:
            if layer in absence.layers and absence.operation != but:
                found |= absence.tokens
        return found

    def follow(self, *, until_dropped: bool = False, marks_only: bool = False) -> Used:
        """Fill in which marks are used, and return what is used in each layer.

        ``until_dropped`` counts the states with which tokens are dropped, although nobody reads
        them; ``marks_only`` leaves out what no mark depends on.
        """
        for mark in self.marks:
            mark.used, mark.acting = False, None
        n_layers = self.scope.model.n_layers
        last: dict[int, Mask] = {}
        for absence in self.absences if until_dropped else ():
            if absence.layers.stop == n_layers:
                _add(last, absence.layers.start, absence.tokens)
        everyone = self._everyone()
        needed = everyone & ~self.absent(n_layers - 1)
        used = self._backwards(needed, last, everyone if marks_only else None)
        # The earlier pass is one without the operations that need it.
        sources: dict[int, Mask] = {}
        for number in {mark.operation for mark in self.marks if mark.used}:
            for layer, tokens in self.earlier.get(number, ()):
                _add(sources, layer, tokens)
        if sources:
            self.without(self.earlier)._backwards(np.zeros_like(everyone), sources)
        return used

    def _backwards(
        self, needed: Mask, sources: dict[int, Mask], everyone: Mask | None = None
    ) -> Used:
        """Follow what is needed behind the last layer, and at ``sources``, to the first layer.

        Where ``everyone`` is needed already, it is not asked who sees whom.
        """
        n_layers = self.scope.model.n_layers
        at: dict[Site, list[Mark]] = {}
        for mark in reversed(self.marks):
            at.setdefault(mark.step.site, []).append(mark)
        used, slots = Used(), set[str]()
        for layer in range(n_layers, -1, -1):
            if layer < n_layers:
                after = needed
                added = _through(at.get(Site(layer, "ffn"), ()), after, slots)
                used.transformed[layer] = added
                middle = after | added
                gathering = _through(at.get(Site(layer, "attention"), ()), middle, slots)
                gathering = _through(at.get(Site(layer, "heads"), ()), gathering, slots)
                masks = at.get(Site(layer, "mixing"), [])
                for mask in masks:
                    mask.used |= self._hides(mask, middle)
                used.gathering[layer] = gathering
                needed = middle | gathering
                if everyone is None or (everyone & ~needed).any():
                    used.seen[layer] = self._seen(layer, gathering, masks)
                    needed = needed | used.seen[layer]
            if layer in sources:
                needed = needed | sources[layer]
            needed = _through(at.get(Site(layer, "entry"), ()), needed, slots)
        return used

    def _hides(self, mask: Mark, middle: Mask) -> bool:
        """Whether a mask hides tokens that are there from queries that are used."""
        assert isinstance(mask.step, PairStep)
        there = mask.step.hidden() & ~self.absent(mask.step.site.layer, mask.operation)
        mask.acting = there & (mask.tokens & middle).any(1, keepdims=True)
        return bool(mask.acting.any())

    def _seen(self, layer: int, queries: Mask, masks: Sequence[Mark]) -> Mask:
        """Tokens that some query sees; each sees itself."""
        seen = queries.copy()
        hidden = [
            (mark.step.hidden(), mark.tokens)
            for mark in masks
            if isinstance(mark.step, PairStep) and mark.step.conceals
        ]
        for keys, blocked in patterns(hidden, queries):
            seen |= keys & self._visible_to(layer, queries & ~blocked)
        return seen

    def _visible_to(self, layer: int, queries: Mask) -> Mask:
        """Tokens that some of these queries could see."""
        if self.visible is not None:
            found = (self.visible[layer] & queries[:, :-1, None]).any(1)
            # Those behind the prompt see all of it; windows that end before are not known here.
            return wide(found | queries[:, -1:], np.zeros(len(queries), bool))
        last = np.where(queries.any(1), queries.shape[1] - 1 - queries[:, ::-1].argmax(1), -1)
        everywhere = (last >= 0)[:, None] & self.scope.both_ways
        earlier: Mask = everywhere | (np.arange(queries.shape[1])[None] < last[:, None])
        return earlier

    def _everyone(self) -> Mask:
        """All real tokens, and those that are generated or scored if there are any."""
        later = np.full(len(self.scope.batch), self.scope.during.kind != "forward")
        return wide(self.scope.real, later)


def patterns(masks: Sequence[tuple[Mask, Mask]], like: Mask) -> list[tuple[Mask, Mask]]:
    """Tokens that are on the first side of the same masks, and all on the second side of those."""
    if not masks:
        return [(np.ones_like(like), np.zeros_like(like))]
    sides = rearrange([side for side, _ in masks], "mask sample token -> (sample token) mask")
    kinds, of = np.unique(sides, axis=0, return_inverse=True)
    of = of.ravel()
    found = []
    for number, kind in enumerate(kinds):
        others = np.zeros_like(like)
        for (_, other), inside in zip(masks, kind, strict=True):
            if inside:
                others |= other
        found.append((rearrange(of == number, "(s t) -> s t", s=len(like)), others))
    return found


def _through(marks: Sequence[Mark], needed: Mask, slots: set[str]) -> Mask:
    """What is needed before some steps at one place, given in reverse, to have what is needed."""
    needed = needed.copy()
    # Tokens on which a later step of the same kind says the same.
    settled: dict[type[Step], Mask] = {}
    for mark in marks:
        step, slot = mark.step, mark.step.slot
        if step.reads:
            if slot in slots:
                needed |= mark.tokens
            continue
        meant = needed | settled.get(type(step), False) if step.idempotent else needed
        mark.acting = mark.tokens & meant
        used = bool(mark.acting.any())
        mark.used |= used
        if step.overwrites:
            settled = {kind: tokens & ~mark.tokens for kind, tokens in settled.items()}
            if step.idempotent:
                _add(settled, type(step), mark.tokens & meant)
            needed &= ~mark.tokens
        if used and slot is not None:
            slots.add(slot)
        if used and (others := step.looks_at()) is not None:
            needed[:, : others.shape[1]] |= others
    return needed


def _add(to: dict[Key, Mask], key: Key, tokens: Mask) -> None:
    to[key] = to.get(key, np.zeros_like(tokens)) | tokens
