"""Which states a program still uses: followed backwards through the layers, from what is read.

The hazard: an edit that a later one overwrites, or that is made on tokens nobody sees any more, is
carried out without a murmur and means nothing. What somebody reads is therefore followed backwards
through the decoder: states leaving a layer need what its sublayers add, and what is gathered by
attention needs the keys it can see.

Read are the states of every real token behind the last layer, whether or not anybody asks for them,
but for tokens that have left; and what the program itself reads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...lens.opening.wrapping import envoy_path
from ..operations.operation import Operation
from ..operations.target import Step, Target

Mask = NDArray[np.bool_]

# Where in a layer something happens, in this order.
ENTRY, MIXING, ATTENTION, FFN = range(4)
# Steps after which nothing is left of what was there; any other changes what it finds.
OVERWRITE = frozenset({"zero", "write"})
HIDE = frozenset({"block", "zero-weights"})


@dataclass(eq=False)
class Mark:
    """One step as the analysis sees it; tokens are ``[sample, token]``, the last for generated.

    Attributes:
        operation: Number of its operation in the plan.
        layer: Layer it happens in; the number of layers for the stream behind the last.
        part: Where in the layer.
        step: The step.
        tokens: Tokens it reads or changes; for a mask the queries.
        keys: For a mask, the keys.
        used: Whether anybody uses what it changes, filled in by :func:`follow`.
    """

    operation: int
    layer: int
    part: int
    step: Step
    tokens: Mask
    keys: Mask | None = None
    used: bool = False


@dataclass(frozen=True, eq=False)
class Absence:
    """Tokens that are not there in some layers, on behalf of one operation."""

    operation: int
    layers: range
    tokens: Mask


@dataclass(eq=False)
class Flow:
    """What is used where, ``[sample, token]`` for each layer.

    Attributes:
        gathering: Tokens whose attention output is used.
        transformed: Tokens whose FFN output is used.
        seen: Tokens whose keys and values are used.
    """

    gathering: dict[int, Mask] = field(default_factory=dict)
    transformed: dict[int, Mask] = field(default_factory=dict)
    seen: dict[int, Mask] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Program:
    """A lowered plan, ready to be followed."""

    target: Target
    marks: tuple[Mark, ...]
    absences: tuple[Absence, ...]

    @staticmethod
    def of(
        operations: Sequence[Operation], lowered: Sequence[Sequence[Step]], target: Target
    ) -> Program:
        """The marks and absences of a plan's operations."""
        places = _places(target)
        marks = tuple(
            mark
            for number, steps in enumerate(lowered)
            for step in steps
            if (mark := _mark(number, step, places, target)) is not None
        )
        n_layers = target.model.n_layers
        absences = tuple(
            Absence(number, layers, _wide(tokens.prompt, None, target))
            for number, operation in enumerate(operations)
            if (layers := operation.away(n_layers))
            for role, tokens in operation.selections(target.batch).items()
            if role == "tokens"
        )
        return Program(target, marks, absences)

    def without(self, operations: Collection[int]) -> Program:
        """The program with some operations left out."""
        return Program(
            self.target,
            tuple(mark for mark in self.marks if mark.operation not in operations),
            tuple(gone for gone in self.absences if gone.operation not in operations),
        )

    def away(self, layer: int, but: int | None = None) -> Mask:
        """Tokens that are not there in a layer, on behalf of any operation ``but`` one."""
        found = np.zeros_like(_everyone(self.target))
        for gone in self.absences:
            if layer in gone.layers and gone.operation != but:
                found |= gone.tokens
        return found

    def follow(self, operations: Sequence[Operation], *, until_gone: bool = False) -> Flow:
        """Fill in which marks are used, and return what is used in each layer.

        Args:
            operations: The plan's operations.
            until_gone: Whether the states with which tokens leave count as used, although nobody
                reads them.
        """
        for mark in self.marks:
            mark.used = False
        n_layers = self.target.model.n_layers
        leaving: dict[int, Mask] = {}
        for gone in self.absences if until_gone else ():
            if gone.layers.stop == n_layers:
                start = gone.layers.start
                leaving[start] = leaving.get(start, np.zeros_like(gone.tokens)) | gone.tokens
        flow = self._backwards(_everyone(self.target) & ~self.away(n_layers - 1), leaving)
        # The states a backward patch writes were read in a pass without the backward patches.
        sources: dict[int, Mask] = {}
        backward = {n for n, op in enumerate(operations) if getattr(op, "backwards", False)}
        for mark in self.marks:
            if mark.operation in backward and "values" in mark.step and mark.used:
                layer, tokens = self._read(operations[mark.operation])
                sources[layer] = sources.get(layer, np.zeros_like(tokens)) | tokens
        if sources:
            self.without(backward)._backwards(np.zeros_like(_everyone(self.target)), sources)
        return flow

    def _read(self, operation: Any) -> tuple[int, Mask]:
        """Layer and tokens whose states a backward patch reads.

        What a sublayer adds has gone into the stream that enters the next layer.
        """
        tokens = operation.source_mask(self.target.batch)
        return operation.source + (operation.site != "residual"), _wide(tokens, None, self.target)

    def _backwards(self, needed: Mask, sources: dict[int, Mask]) -> Flow:
        """Follow what is needed behind the last layer, and at ``sources``, to the first layer."""
        n_layers = self.target.model.n_layers
        at: dict[tuple[int, int], list[Mark]] = {}
        for mark in reversed(self.marks):
            at.setdefault((mark.layer, mark.part), []).append(mark)
        flow, keys = Flow(), set[str]()
        for layer in range(n_layers, -1, -1):
            if layer < n_layers:
                leaving = needed
                added = _through(at.get((layer, FFN), ()), leaving, keys)
                flow.transformed[layer] = added
                middle = leaving | added
                gathering = _through(at.get((layer, ATTENTION), ()), middle, keys)
                masks = at.get((layer, MIXING), [])
                for mask in masks:
                    mask.used |= self._hides(mask, middle)
                flow.gathering[layer] = gathering
                flow.seen[layer] = self._seen(gathering, masks)
                needed = middle | gathering | flow.seen[layer]
            if layer in sources:
                needed = needed | sources[layer]
            needed = _through(at.get((layer, ENTRY), ()), needed, keys)
        return flow

    def _hides(self, mask: Mark, middle: Mask) -> bool:
        """Whether a mask hides tokens that are there from queries that are used."""
        assert mask.keys is not None
        there = mask.keys & ~self.away(mask.layer, mask.operation)
        return bool(((mask.tokens & middle).any(1) & there.any(1)).any())

    def _seen(self, queries: Mask, masks: Sequence[Mark]) -> Mask:
        """Tokens that some query sees; each sees itself."""
        seen = queries.copy()
        both_ways = "bidirectional_image" in self.target.model.anatomy.capabilities
        place = np.arange(queries.shape[1])
        hidden = [m for m in masks if not m.step.get("collapse")]
        for keys, blocked in patterns(hidden, "keys", "tokens", queries):
            left = queries & ~blocked
            last = np.where(left.any(1), left.shape[1] - 1 - left[:, ::-1].argmax(1), -1)
            visible = np.broadcast_to((last >= 0)[:, None] & both_ways, keys.shape)
            seen |= keys & (visible | (place[None] < last[:, None]))
        return seen


def patterns(masks: Sequence[Mark], by: str, what: str, like: Mask) -> list[tuple[Mask, Mask]]:
    """Tokens that are in the same masks ``by`` one side, and all that those hold on the other."""
    if len(masks) > 60:  # more than a number has bits: as if nothing were hidden
        masks = []
    code = np.zeros(like.shape, dtype=np.int64)
    for bit, mask in enumerate(masks):
        code |= getattr(mask, by).astype(np.int64) << bit
    found = []
    for value in np.unique(code).tolist():
        others = np.zeros_like(like)
        for bit, mask in enumerate(masks):
            if value >> bit & 1:
                others |= getattr(mask, what)
        found.append((code == value, others))
    return found


def _through(marks: Sequence[Mark], needed: Mask, keys: set[str]) -> Mask:
    """What is needed before some steps at one place, given in reverse, to have what is needed."""
    needed, zeroed = needed.copy(), np.zeros_like(needed)
    for mark in marks:
        do, key = mark.step["do"], mark.step.get("key")
        if do == "read":
            if key in keys:
                needed |= mark.tokens
            continue
        # What is made zero twice is as both say.
        meant = needed | zeroed if do == "zero" else needed
        used = bool((mark.tokens & meant).any())
        mark.used |= used
        if do in OVERWRITE:
            zeroed = zeroed & ~mark.tokens if do != "zero" else zeroed | (mark.tokens & meant)
            needed &= ~mark.tokens
        if used and key is not None:
            keys.add(key)
        if used and "others" in mark.step:
            others = mark.step["others"].numpy()
            needed[:, : others.shape[1]] |= others
    return needed


def _everyone(target: Target) -> Mask:
    """All real tokens, and those that are generated or scored if there are any."""
    later = np.full(len(target.batch), target.during.kind != "forward")
    return _wide(target.real, later, target)


def _wide(prompt: Mask, later: Mask | None, target: Target) -> Mask:
    column = np.zeros(len(target.batch), bool) if later is None else later
    return np.concatenate([prompt, column[:, None]], axis=1)


def _places(target: Target) -> dict[tuple[str, str], tuple[int, int]]:
    """Layer and part for each (path, side) at which states can be changed."""
    anatomy = target.model.anatomy
    places: dict[tuple[str, str], tuple[int, int]] = {}
    for layer, path in enumerate(anatomy.mixer):
        if path is not None:
            places[envoy_path(path), "mask"] = (layer, MIXING)
    for part, addends in ((ATTENTION, anatomy.attention), (FFN, anatomy.ffn)):
        for layer, path in enumerate(addends):
            if path is not None:
                places[envoy_path(path), "output"] = (layer, part)
    for layer in range(anatomy.n_layers + 1):
        places[envoy_path(anatomy.residual(layer)), "input"] = (layer, ENTRY)
    return places


def _mark(
    number: int, step: Step, places: dict[tuple[str, str], tuple[int, int]], target: Target
) -> Mark | None:
    """A step's mark, or None for one that changes no states (rows that are taken out)."""
    side = "output" if step["do"] == "zero" else step.get("side", "input")
    place = places.get((step["path"], "mask" if step["do"] in HIDE else side))
    if place is None or not ("rows" in step or step["do"] in HIDE):
        return None
    if step["do"] in HIDE:
        queries, keys = (_pair(step, role, target) for role in ("queries", "keys"))
        return Mark(number, *place, step, queries, keys)
    return Mark(number, *place, step, _tokens(step, target))


def _pair(step: Step, role: str, target: Target) -> Mask:
    """The queries or keys of a mask; queries only where the step acts."""
    prompt, later = step[role].numpy(), step["later_" + role].numpy()
    if role == "queries" and step["when"] != "prefill":
        prompt = np.zeros_like(prompt)
    return _wide(prompt, later, target)


def _tokens(step: Step, target: Target) -> Mask:
    found = np.zeros_like(_everyone(target))
    rows: Any = step["rows"].numpy()
    columns = step["columns"].numpy() if step["when"] == "prefill" else target.batch.length
    found[rows, np.minimum(columns, target.batch.length)] = True
    return found
