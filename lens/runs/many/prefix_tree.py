"""In which order programs run, so that each starts where an earlier one agrees with it longest.

Programs are compared place by place, in the order in which a pass comes by: layers, and the parts
of each layer. What they have in common at the beginning is a path in a tree, and the tree is walked
depth first, so that few beginnings have to be kept at the same time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..plan_protocol import PARTS, Touch
from .conditions import Condition

# A layer, and the number of one of :data:`PARTS`.
Place = tuple[int, int]
Content = Mapping[Place, tuple[Hashable, ...]]


def place_of(touch: Touch) -> Place:
    """Where a step acts."""
    return touch.layer, PARTS.index(touch.part)


@dataclass(eq=False)
class Branch:
    """Conditions that all do the same, and what other ones start from.

    Attributes:
        conditions: The conditions.
        origin: The branch from whose pass this one starts; None at the root.
        place: The first place at which it differs from that.
        keeps: Places at which others leave it, and how many do.
    """

    conditions: list[Condition]
    origin: Branch | None = None
    place: Place | None = None
    keeps: dict[Place, int] = field(default_factory=lambda: defaultdict(int))

    def origins(self) -> Iterator[tuple[Branch, Place]]:
        """The branches that it comes from, with the first place at which it differs from each."""
        at, farthest = self, None
        while at.origin is not None and at.place is not None:
            farthest = at.place if farthest is None else min(farthest, at.place)
            yield at.origin, farthest
            at = at.origin


def branches(conditions: Sequence[Condition]) -> list[Branch]:
    """The branches of the tree, in the order in which they are run."""
    contents = {condition: _content(condition) for condition in conditions}
    order: list[Branch] = []

    def visit(group: list[Condition], passed: Place, branch: Branch) -> None:
        """Walk what agrees up to a place, which the branch is the first to go through."""
        here = _first_difference([contents[condition] for condition in group], passed)
        if here is None:
            branch.conditions = group
            order.append(branch)
            return
        parts: dict[tuple[Hashable, ...], list[Condition]] = defaultdict(list)
        for condition in group:
            parts[contents[condition].get(here, ())].append(condition)
        # What does nothing here goes first, and what can keep nothing last.
        groups = sorted(parts.items(), key=lambda part: (not _keeps(part[1]), part[0] != ()))
        (_, first), *others = groups
        branch.keeps[here] += len(others)
        visit(first, here, branch)
        for _, other in others:
            visit(other, here, Branch([], branch, here))

    if conditions:
        visit(list(conditions), (-1, 0), Branch([]))
    return order


def _content(condition: Condition) -> Content:
    found: dict[Place, list[Hashable]] = defaultdict(list)
    for touch in condition.touches:
        found[place_of(touch)].append(touch.key)
    return {place: tuple(keys) for place, keys in found.items()}


def _first_difference(contents: Sequence[Content], passed: Place) -> Place | None:
    """The first place behind another one at which programs differ."""
    places = sorted({place for content in contents for place in content if place > passed})
    first, *others = contents
    return next(
        (
            place
            for place in places
            if any(other.get(place, ()) != first.get(place, ()) for other in others)
        ),
        None,
    )


def _keeps(group: Sequence[Condition]) -> bool:
    return any(condition.hooks for condition in group)
