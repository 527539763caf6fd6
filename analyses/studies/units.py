"""The units of a study: what is computed at once, and stored or lost as a whole.

A unit is one kind of observation of one block of items under some conditions on one model. Blocks
and conditions are cut by the study's file alone, never by what is missing, so that a unit's numbers
are the same whenever and wherever it is computed. Its key is made of contents: of the model, the
plans, the images, the prompts, the measures and their versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from hashlib import sha256
from itertools import islice, product
from typing import NamedTuple

from .condition_grid import StudyCondition
from .items import Item
from .measures import AnswerMeasure, Kind

_FORMAT = "embedlens unit 1"


class Cut(NamedTuple):
    """What belongs to one unit: a model, a kind of observation, items and conditions, by number."""

    model: int
    kind: Kind
    items: range
    conditions: range


class Unit(NamedTuple):
    """One unit.

    Attributes:
        place: Its number in the study.
        key: Of its contents, 32 hexadecimal digits.
        cut: What belongs to it.
    """

    place: int
    key: str
    cut: Cut


@dataclass(frozen=True)
class Cuts:
    """How a study is cut into units, in the order in which they are computed.

    Attributes:
        conditions: Per model how many conditions there are.
        items: How many items there are.
        kinds: What is observed.
        batch_size: Items in a block.
        conditions_at_once: Conditions in a unit.
    """

    conditions: tuple[int, ...]
    items: int
    kinds: tuple[Kind, ...]
    batch_size: int
    conditions_at_once: int

    def __len__(self) -> int:
        blocks = len(_cut(self.items, self.batch_size))
        chunks = sum(len(_cut(n, self.conditions_at_once)) for n in self.conditions)
        return blocks * chunks * len(self.kinds)

    def __iter__(self) -> Iterator[Cut]:
        blocks = _cut(self.items, self.batch_size)
        for model, number in enumerate(self.conditions):
            chunks = _cut(number, self.conditions_at_once)
            for kind, block, chunk in product(self.kinds, blocks, chunks):
                yield Cut(model, kind, block, chunk)


@dataclass(frozen=True, eq=False)
class ModelPart:
    """What a study does on one model.

    Attributes:
        identity: What tells the model from any other: its name, weights, type and place.
        conditions: Its conditions.
    """

    identity: str
    conditions: Sequence[StudyCondition]


@dataclass(frozen=True, eq=False)
class Units:
    """All units of a study, made one after the other.

    Attributes:
        models: What is done on each model.
        items: What is asked.
        measures: What is measured, by kind of observation.
        settings: What else decides numbers: markers, limits, versions.
        batch_size: Items in a block.
        conditions_at_once: Conditions in a unit.
    """

    models: Sequence[ModelPart]
    items: Sequence[Item]
    measures: Mapping[Kind, Sequence[AnswerMeasure]]
    settings: str
    batch_size: int
    conditions_at_once: int

    @cached_property
    def cuts(self) -> Cuts:
        """How they are cut."""
        numbers = tuple(len(part.conditions) for part in self.models)
        sizes = self.batch_size, self.conditions_at_once
        return Cuts(numbers, len(self.items), tuple(self.measures), *sizes)

    def __len__(self) -> int:
        return len(self.cuts)

    def __iter__(self) -> Iterator[Unit]:
        return self.shard(1, 1)

    def shard(self, number: int, of: int) -> Iterator[Unit]:
        """Every ``of``-th unit, beginning with the ``number``-th, counted from 1."""
        said = {
            kind: [[measure.name, measure.version] for measure in measures]
            for kind, measures in self.measures.items()
        }
        keys = [item.asked_key for item in self.items]
        told = [[[c.name, c.digest] for c in part.conditions] for part in self.models]

        @cache
        def how(model: int, kind: Kind) -> str:
            identity = self.models[model].identity
            return _digest([_FORMAT, identity, self.settings, kind, said[kind]])

        @lru_cache(maxsize=64)
        def asked(block: range) -> str:
            return _digest(keys[block.start : block.stop])

        @cache
        def changed(model: int, chunk: range) -> str:
            return _digest(told[model][chunk.start : chunk.stop])

        for place, cut in islice(enumerate(self.cuts), number - 1, None, of):
            parts = how(cut.model, cut.kind), asked(cut.items), changed(cut.model, cut.conditions)
            yield Unit(place, sha256("".join(parts).encode()).hexdigest()[:32], cut)


def _cut(n: int, size: int) -> list[range]:
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def _digest(value: object) -> str:
    return sha256(json.dumps(value).encode()).hexdigest()
