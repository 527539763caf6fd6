"""Questions with known answers. `ask` makes one; each task has its own function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .descriptions import caption, refer
from .objects import CELL_SIZE, SceneObject, choose
from .vocabulary import CATEGORIES, COLORS, COLUMNS, NUMBERS, ROWS, SHAPES

_NEAREST_RELATION = 12  # pixels between centres; closer pairs are too near to call


@dataclass(frozen=True)
class Question:
    """A question about a scene: its task, its words, the one right answer."""

    task: str
    text: str
    answer: str


@dataclass(frozen=True)
class _Facts:
    """What a question may ask about, and the generator that chooses."""

    objects: Sequence[SceneObject]
    background: str
    rng: np.random.Generator

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def unique(self, attribute: str, among: Sequence[SceneObject]) -> SceneObject | None:
        """One whose colour or kind no other of `among` shares, if there is any."""
        values = [getattr(item, attribute) for item in among]
        alone = [
            item for item, value in zip(among, values, strict=True) if values.count(value) == 1
        ]
        return choose(self.rng, alone) if alone else None


_Pair = tuple[str, str]


def _color(facts: _Facts) -> _Pair | None:
    item = facts.unique("kind", facts.objects)
    return None if item is None else (f"what color is the {item.noun} ?", item.color)


def _shape(facts: _Facts) -> _Pair | None:
    item = facts.unique("color", facts.objects)
    return None if item is None else (f"what is the {item.color} object ?", item.noun)


def _presence(facts: _Facts) -> _Pair | None:
    if facts.chance(0.35):
        category = choose(facts.rng, CATEGORIES[1:])
        there = any(item.category == category for item in facts.objects)
        return f"is there a {category} ?", "yes" if there else "no"
    shapes = [item for item in facts.objects if item.category == "shape"]
    if facts.chance(0.5):
        if not shapes:
            return None
        item = choose(facts.rng, shapes)
        return f"is there a {item.kind if facts.chance(0.6) else item.phrase} ?", "yes"
    if not shapes or facts.chance(0.6):
        shown = {item.kind for item in shapes}
        absent = [shape for shape in SHAPES if shape not in shown]
        return f"is there a {choose(facts.rng, absent)} ?", "no"
    # The hard negative: a kind that is shown in a colour that is often shown too, but elsewhere.
    item = choose(facts.rng, shapes)
    shown_colors = [other.color for other in facts.objects]
    color = choose(facts.rng, shown_colors if facts.chance(0.5) else list(COLORS))
    if any(other.kind == item.kind and other.color == color for other in shapes):
        return None
    return f"is there a {color} {item.kind} ?", "no"


def _glyph(facts: _Facts, category: str) -> _Pair | None:
    shown = [item for item in facts.objects if item.category == category]
    if len(shown) == 1:
        return f"what {category} is shown ?", shown[0].kind
    item = facts.unique("color", shown)
    return None if item is None else (f"what {category} is {item.color} ?", item.kind)


def _count(facts: _Facts) -> _Pair | None:
    what = facts.rng.random()
    if what < 0.6:
        return "how many objects are there ?", NUMBERS[len(facts.objects)]
    if what < 0.8:
        shown = [item.color for item in facts.objects]
        color = choose(facts.rng, shown if facts.chance(0.8) else list(COLORS))
        return f"how many {color} objects are there ?", NUMBERS[shown.count(color)]
    category = choose(facts.rng, CATEGORIES)
    number = sum(item.category == category for item in facts.objects)
    return f"how many {category}s are there ?", NUMBERS[number]


def _relation(facts: _Facts) -> _Pair | None:
    if len(facts.objects) < 2:
        return None
    first, second = (facts.objects[i] for i in facts.rng.permutation(len(facts.objects))[:2])
    horizontal = facts.chance(0.5)
    axis = 0 if horizontal else 1
    distance = first.center[axis] - second.center[axis]
    same_cell = first.column == second.column if horizontal else first.row == second.row
    # In one cell the description, which names cells only, could not answer.
    if abs(distance) < _NEAREST_RELATION or same_cell:
        return None
    words = ("left of", "right of") if horizontal else ("above", "below")
    right, wrong = words[distance > 0], words[distance <= 0]
    one, other = (refer(item, facts.objects, facts.rng) for item in (first, second))
    if facts.chance(0.5):
        choice = "left or right of" if horizontal else "above or below"
        return f"is the {one} {choice} the {other} ?", right.split()[0]
    if facts.chance(0.5):
        return f"is the {one} {right} the {other} ?", "yes"
    return f"is the {one} {wrong} the {other} ?", "no"


def _position(facts: _Facts) -> _Pair | None:
    item = choose(facts.rng, facts.objects)
    return f"where is the {refer(item, facts.objects, facts.rng)} ?", item.place


def _what_at(facts: _Facts) -> _Pair | None:
    item = choose(facts.rng, facts.objects)
    alone = sum(other.place == item.place for other in facts.objects) == 1
    if alone and facts.chance(0.7):
        return f"what is at {item.place} ?", item.phrase
    row, column = (int(i) for i in facts.rng.integers(len(ROWS), size=2))
    cell = (column * CELL_SIZE, row * CELL_SIZE, CELL_SIZE, CELL_SIZE)
    if any(other.overlaps(*cell) for other in facts.objects):
        return None
    return f"what is at {ROWS[row]} {COLUMNS[column]} ?", "nothing"


_ASK: dict[str, Callable[[_Facts], _Pair | None]] = {
    "color": _color,
    "shape": _shape,
    "presence": _presence,
    "letter": lambda facts: _glyph(facts, "letter"),
    "digit": lambda facts: _glyph(facts, "digit"),
    "count": _count,
    "relation": _relation,
    "position": _position,
    "what-at": _what_at,
    "background": lambda facts: ("what is the background ?", facts.background),
    "caption": lambda facts: ("describe the image .", caption(facts.objects, facts.background)),
}

TASKS: tuple[str, ...] = tuple(_ASK)
"""The names of the question tasks."""

TASK_FREQUENCIES: dict[str, float] = dict(
    zip(TASKS, (1.3, 1.1, 1, 1, 0.8, 1.6, 2.2, 1, 0.8, 0.35, 0.35), strict=True)
)
"""How often each task is tried when a scene is asked everything, relative to the others."""


def ask(
    task: str, objects: Sequence[SceneObject], background: str, rng: np.random.Generator
) -> Question | None:
    """One random question of a task, or None when this draw has no well-posed question."""
    if task not in _ASK:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    pair = _ASK[task](_Facts(objects, background, rng))
    return None if pair is None else Question(task, *pair)
