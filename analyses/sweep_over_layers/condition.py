"""A condition: one plan, what the table says of it, and the controls it is compared with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from ...interventions import Plan
from ...lens import TokenClasses
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.selectors.parser import parse_selector
from ...lens.token_classes import CLASS_NAMES
from ..asked_questions import Questions
from ..comparison_of_plans.outcomes import Label

ALL_VISUAL = "visual"


@dataclass(frozen=True, eq=False)
class PlacedPlan:
    """One plan and its place in a table.

    Attributes:
        plan: What is changed.
        about: What the table says of it, by column: text, a number, or None where it has none.
        controls: Plans that do as much to other tokens; several are averaged.
        saved: More columns, which do not tell it from others: what it saves.
    """

    plan: Plan
    about: Mapping[str, str | float | None]
    controls: tuple[Plan, ...] = ()
    saved: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """All that the table says of it, which no other condition has."""
        told = [f"{column} {value}" for column, value in self.about.items() if value is not None]
        return ", ".join(told)


@dataclass(frozen=True, eq=False)
class AskedTokens:
    """The tokens of the questions: how many a selector means, and their classes.

    Attributes:
        batch_size: Examples per batch.
        batches: The first example of every batch, and the batch.
        sets: Gives a batch of these examples sets of tokens of its own.
    """

    batch_size: int
    batches: Mapping[int, Batch]
    sets: Label | None = None
    _counts: dict[str, Int[np.ndarray, " example"]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: VisualLM,
        questions: Questions,
        markers: Markers | None,
        batch_size: int,
        sets: Label | None = None,
    ) -> "AskedTokens":
        """Every example encoded, classified where there are markers, and with its sets."""
        parts = questions.batches(model, batch_size, markers)
        with_sets = {p[0]: b if sets is None else sets(b, p) for p, b in parts}
        return cls(batch_size, with_sets, sets)

    def label(self, batch: Batch, part: Sequence[int]) -> Batch:
        """The batch of these examples, with the classes and sets that are known."""
        classes: TokenClasses | None = self.batches[part[0]].classes
        known = batch if classes is None else batch.with_classes(classes)
        return known if self.sets is None else self.sets(known, part)

    def count(self, selector: str) -> Int[np.ndarray, " example"]:
        """How many tokens of each example a selector means."""
        if selector not in self._counts:
            parsed = parse_selector(selector)
            found = [parsed.select(batch).prompt.sum(1) for batch in self.batches.values()]
            self._counts[selector] = np.concatenate(found)
        return self._counts[selector]

    def some_in_every_batch(self, selector: str) -> bool:
        """Whether no batch is without such a token: a plan that means none is refused."""
        counts = self.count(selector)
        starts = range(0, len(counts), self.batch_size)
        return all(counts[start : start + self.batch_size].any() for start in starts)

    def share(self, selector: str) -> float:
        """Such tokens for each visual one, mean over examples."""
        return float((self.count(selector) / np.fmax(self.count(ALL_VISUAL), 1)).mean())

    @property
    def classified(self) -> bool:
        """Whether the tokens are classified."""
        return all(batch.classes is not None for batch in self.batches.values())

    def classes(self) -> list[str]:
        """The classes that every batch has tokens of, where the tokens are classified."""
        if not self.classified:
            return []
        return [name for name in CLASS_NAMES if self.some_in_every_batch(name)]

    def drawn_from(self, selector: str) -> str | None:
        """What a matched control draws from: the other visual tokens, as in the paper's control.

        All visual tokens where the others are too few in some example, which makes the control
        more like the condition, and nothing where the selector means them all.
        """
        wanted, visual = self.count(selector), self.count(ALL_VISUAL)
        if (wanted == visual).all():
            return None
        others = f"{ALL_VISUAL} & ~({selector})"
        if (self.count(others) >= wanted).all():
            return others
        return ALL_VISUAL if (wanted <= visual).all() else None

    def controls(self, plan: Plan, selector: str, seeds: int) -> tuple[Plan, ...]:
        """As many matched controls of a plan that acts on these tokens; none for all."""
        within = self.drawn_from(selector)
        return () if within is None else tuple(plan.control(n, within) for n in range(seeds))


def check_known(what: str, given: Sequence[str], known: Iterable[str]) -> None:
    """Refuse a name that is none of the known ones."""
    known = list(known)
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"no {what} {unknown[0]!r}; there are {', '.join(known)}")


def checked_tokens(asked: AskedTokens, tokens: Sequence[str] | None) -> list[str]:
    """The sets of tokens to act on: those named, or all visual ones and every class that is known.

    Raises:
        InputError: A set of which some batch of examples has no token.
    """
    if tokens is None:
        return [ALL_VISUAL, *asked.classes()]
    if isinstance(tokens, str):
        raise InputError(f"tokens={tokens!r}: a list of selectors, [{tokens!r}]")
    for selector in tokens:
        if not asked.some_in_every_batch(selector):
            raise InputError(
                f"some batch of {asked.batch_size} examples has no token of {selector!r}: leave it "
                "out, or take a larger batch_size"
            )
    return list(dict.fromkeys(tokens))


def some_layers(n_layers: int, places: int) -> list[int]:
    """So many layers at most, evenly spread, the first among them."""
    step = max(1, -(-n_layers // places))
    return list(range(0, n_layers, step))


def windows(n_layers: int, width: int, starts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """As many neighbouring layers from each of the starts on, where there are as many."""
    if not 1 <= width <= n_layers:
        raise InputError(f"a window of {width} layers, of {n_layers}: from 1 to {n_layers}")
    last = n_layers - width
    for start in dict.fromkeys([*(start for start in starts if start <= last), last]):
        yield tuple(range(start, start + width))


def span(layers: Sequence[int]) -> str:
    """Neighbouring layers as text: ``3`` or ``0-7``."""
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
