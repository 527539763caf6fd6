"""Captured states as a measure of a study: per model and condition one folder of states.

Each is what ``embedlens extract`` writes under the same plan, cut into blocks as the study cuts its
items. Blocks are the units: each is on disk when it is counted, and a folder says of itself all
that decides its numbers, so that states of another plan, model, file or package are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...lens.errors import InputError
from ...lens.model import VisualLM
from ...lens.runs.captures import capture_sites
from ...lens.runs.run import CAPTURES
from ...lens.selectors.parser import parse_selector
from ..extraction.extraction import Extraction, Failure, layers_of
from ..extraction.states_folder import DESCRIPTION, StatesFolder
from ..extraction.write_states import begin
from .condition_grid import StudyCondition
from .items import Item
from .observing import Observer
from .study_file import STATES, StatesSpec, StudyFile

_LONGEST = 100  # characters of a name in a path, far below what file systems take


class StatesPlace(NamedTuple):
    """Where the states of one condition on one model are.

    Attributes:
        model, condition: Their numbers in the study.
        folder: Relative to the study's own, with ``/``.
    """

    model: int
    condition: int
    folder: str


class StatesUnit(NamedTuple):
    """One block of items of one place."""

    place: StatesPlace
    block: int


def states_of(study: StudyFile) -> StatesSpec | None:
    """The states that a study keeps; None for none.

    Raises:
        InputError: No such site, layers or selector, or a model on a server.
    """
    spec = study.states
    if spec is None:
        return None
    if unknown := [site for site in spec.sites if site not in CAPTURES]:
        raise InputError(f"measures: states: no site {unknown[0]!r}; sites: {', '.join(CAPTURES)}")
    try:
        layers_of(_layers(spec))
        for selector in (spec.tokens, spec.queries, spec.keys):
            parse_selector(selector)
    except InputError as error:
        raise InputError(f"measures: states: {error}") from None
    if remote := [model.called for model in study.models if model.remote]:
        raise InputError(f"measures: states cannot be kept of a model on a server ({remote[0]})")
    return spec


def check_states(spec: StatesSpec, model: VisualLM) -> None:
    """Refuse layers that a model does not have (InputError), and sites (Unsupported)."""
    try:
        capture_sites(model, spec.sites, layers_of(_layers(spec)))
    except InputError as error:
        raise InputError(f"measures: states of {model.name}: {error}") from None


def states_places(conditions: Mapping[str, Sequence[StudyCondition]]) -> list[StatesPlace]:
    """Where the states of every condition are.

    Args:
        conditions: Of every model, by what it is called.
    """
    return [
        StatesPlace(
            model,
            number,
            f"{STATES}/{_in_path(model, called)}/{_in_path(number, condition.name)}",
        )
        for model, (called, listed) in enumerate(conditions.items())
        for number, condition in enumerate(listed)
    ]


def blocks_of_states(study: Mapping[str, Any]) -> int:
    """How many blocks each place has, in a study that keeps states."""
    n, most = int(study["data"]["items"]), study[STATES]["items"]
    few = n if most is None else min(n, int(most))
    return -(-few // int(study["batch_size"]))


@dataclass(eq=False)
class StudyStates:
    """The states that a study keeps.

    Attributes:
        spec: Which ones.
        items: Of these items.
        conditions: Of every model, by what it is called.
        batch_size: Items in a block.
        out: The study's folder; None keeps nothing.
    """

    spec: StatesSpec
    items: Sequence[Item]
    conditions: Mapping[str, Sequence[StudyCondition]]
    batch_size: int
    out: Path | None = None
    _begun: tuple[StatesPlace, Extraction] | None = field(default=None, repr=False)

    @property
    def places(self) -> list[StatesPlace]:
        """Where they go."""
        return states_places(self.conditions)

    @property
    def blocks(self) -> int:
        """How many blocks each place has."""
        return -(-len(self.items) // self.batch_size)

    def __len__(self) -> int:
        return self.blocks * len(self.places)

    def lacking(self, number: int, of: int) -> Iterator[StatesUnit]:
        """Of every ``of``-th block, beginning with the ``number``-th, those not whole on disk."""
        done: dict[StatesPlace, set[int]] = {}
        every = ((place, block) for place in self.places for block in range(self.blocks))
        for place, block in islice(every, number - 1, None, of):
            if place not in done:
                done = {place: self._folder(place).done()}
            if block not in done[place]:
                yield StatesUnit(place, block)

    def extraction(self, observer: Observer, place: StatesPlace) -> Extraction:
        """What is extracted for a place."""
        spec = self.spec
        condition = list(self.conditions.values())[place.model][place.condition]
        return Extraction(
            observer.model,
            [item.shown_with(condition.wrong_image) for item in self.items],
            tuple(spec.sites),
            layers_of(_layers(spec)),
            *(spec.tokens, spec.queries, spec.keys),
            condition.plan,
            observer.markers,
            observer.nearest_words,
            self.batch_size,
            spec.store_as,
        )

    def keep(self, observer: Observer, unit: StatesUnit) -> list[Failure]:
        """Put a block on disk; what of it could not be computed is recorded and returned.

        Raises:
            InputError: Other states are in its place.
        """
        folder = self._folder(unit.place)
        if self._begun is None or self._begun[0] != unit.place:
            made = self.extraction(observer, unit.place)
            folder.check()
            begin(folder, made)
            self._begun = unit.place, made
        index, tensors, failures = self._begun[1].block(unit.block)
        folder.write_block(unit.block, index, tensors, failures)
        return failures

    def _folder(self, place: StatesPlace) -> StatesFolder:
        assert self.out is not None
        return StatesFolder(self.out / place.folder)


@dataclass(frozen=True)
class KeptStates:
    """The states in a study's folder.

    Attributes:
        out: The study's folder.
        places: Where states can be in it.
    """

    out: Path
    places: Sequence[StatesPlace]

    def there(self) -> Iterator[tuple[StatesPlace, StatesFolder]]:
        """The places where there are states."""
        for place in self.places:
            if (self.out / place.folder / DESCRIPTION).is_file():
                yield place, StatesFolder(self.out / place.folder)

    def counts(self) -> tuple[int, int]:
        """How many blocks are whole, and how many have something that could not be computed."""
        done = [(len(folder.done()), len(folder.blocks())) for _, folder in self.there()]
        return sum(whole for whole, _ in done), sum(every - whole for whole, every in done)

    @staticmethod
    def check_same(several: Sequence[KeptStates]) -> None:
        """Refuse folders of one study whose states differ: InputError with the difference."""
        first: dict[StatesPlace, StatesFolder] = {}
        for kept in several:
            for place, folder in kept.there():
                first.setdefault(place, folder).compare(folder.description)

    def merge(self, other: KeptStates) -> None:
        """Take what another folder of the study has and this one has not."""
        for place, folder in other.there():
            StatesFolder(self.out / place.folder).take(folder)


def _layers(spec: StatesSpec) -> Any:
    return str(spec.layers) if isinstance(spec.layers, int) else spec.layers


def _in_path(number: int, name: str) -> str:
    """A name that every file system takes, told from all others by its number."""
    return f"{number}-{re.sub(r'[^A-Za-z0-9.=+-]+', '_', name)[:_LONGEST].strip('_.')}"
