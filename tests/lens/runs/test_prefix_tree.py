"""The order in which programs run: each starts from the earlier one that it agrees with longest."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from embedlens.lens.runs.many.conditions import Condition
from embedlens.lens.runs.many.prefix_tree import branches, place_of
from embedlens.lens.runs.plan_protocol import PARTS, Touch


@dataclass(frozen=True, eq=False)
class Given:
    """A program that is known by what it touches only."""

    touches: tuple[Touch, ...]
    changes_length = False

    def __len__(self) -> int:
        return len(self.touches)

    def some(self, chosen: Any) -> Any:
        raise NotImplementedError

    stack = apply = some


def condition(index: int, steps: dict[tuple[int, int], str], hooks: bool = True) -> Condition:
    touches = tuple(
        Touch(layer, PARTS[part], key, "kind", None, False, False)
        for (layer, part), key in steps.items()
    )
    return Condition(index, Given(touches), hooks)  # type: ignore[arg-type]


STEPS = st.dictionaries(
    st.tuples(st.integers(0, 2), st.integers(0, 3)), st.sampled_from("ab"), max_size=4
)


def agreement(one: Condition, other: Condition) -> tuple[int, int]:
    """The first place at which two differ."""
    mine, theirs = (
        {place_of(touch): touch.key for touch in condition.touches} for condition in (one, other)
    )
    places = itertools.product(range(4), range(4))
    return next((place for place in places if mine.get(place) != theirs.get(place)), (9, 9))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(STEPS, min_size=1, max_size=8))
def test_each_starts_where_an_earlier_one_agrees_with_it_longest(
    programs: list[dict[tuple[int, int], str]],
) -> None:
    conditions = [condition(index, steps) for index, steps in enumerate(programs)]
    order = branches(conditions)
    assert sorted(c.index for branch in order for c in branch.conditions) == [*range(len(programs))]
    done: list[Condition] = []
    for branch in order:
        first, *same = branch.conditions
        assert all(agreement(first, other) == (9, 9) for other in same)
        if not done:
            assert branch.origin is None
        else:
            assert branch.origin in order[: order.index(branch)]
            assert branch.place == max(agreement(first, other) for other in done)
            assert branch.place == agreement(first, branch.origin.conditions[0])
            assert branch.origin.keeps[branch.place] >= 1
        done += branch.conditions
