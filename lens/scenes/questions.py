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
class _View:
    """What a question may look at."""

    objects: Sequence[SceneObject]
    background: str
    rng: np.random.Generator

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def unique(self, attribute: str, among: Sequence[SceneObject]) -> list[SceneObject]:
        """Those whose colour or kind no other of `among` shares."""
        values = [getattr(item, attribute) for item in among]
        return [item for item, value in zip(among, values, strict=True) if values.count(value) == 1]


_Pair = tuple[str, str]


def _color(view: _View) -> _Pair | None:
    candidates = view.unique("kind", view.objects)
    if not candidates:
        return None
    item = choose(view.rng, candidates)
    return f"what color is the {item.noun} ?", item.color


def _shape(view: _View) -> _Pair | None:
    candidates = view.unique("color", view.objects)
    if not candidates:
        return None
    item = choose(view.rng, candidates)
    return f"what is the {item.color} object ?", item.noun


def _presence(view: _View) -> _Pair | None:
    if view.chance(0.35):
        category = choose(view.rng, CATEGORIES[1:])
        there = any(item.category == category for item in view.objects)
        return f"is there a {category} ?", "yes" if there else "no"
    shapes = [item for item in view.objects if item.category == "shape"]
    if view.chance(0.5):
        if not shapes:
            return None
        item = choose(view.rng, shapes)
        return f"is there a {item.kind if view.chance(0.6) else item.phrase} ?", "yes"
    if not shapes or view.chance(0.6):
        shown = {item.kind for item in shapes}
        absent = [shape for shape in SHAPES if shape not in shown]
        return f"is there a {choose(view.rng, absent)} ?", "no"
    # The hard negative: a kind that is shown in a colour that is often shown too, but elsewhere.
    item = choose(view.rng, shapes)
    shown_colors = [other.color for other in view.objects]
    color = choose(view.rng, shown_colors if view.chance(0.5) else list(COLORS))
    if any(other.kind == item.kind and other.color == color for other in shapes):
        return None
    return f"is there a {color} {item.kind} ?", "no"


def _glyph(view: _View, category: str) -> _Pair | None:
    shown = [item for item in view.objects if item.category == category]
    if len(shown) == 1:
        return f"what {category} is shown ?", shown[0].kind
    candidates = view.unique("color", shown)
    if not candidates:
        return None
    item = choose(view.rng, candidates)
    return f"what {category} is {item.color} ?", item.kind


def _letter(view: _View) -> _Pair | None:
    return _glyph(view, "letter")


def _digit(view: _View) -> _Pair | None:
    return _glyph(view, "digit")


def _count(view: _View) -> _Pair | None:
    what = view.rng.random()
    if what < 0.6:
        return "how many objects are there ?", NUMBERS[len(view.objects)]
    if what < 0.8:
        shown = [item.color for item in view.objects]
        color = choose(view.rng, shown if view.chance(0.8) else list(COLORS))
        return f"how many {color} objects are there ?", NUMBERS[shown.count(color)]
    category = choose(view.rng, CATEGORIES)
    number = sum(item.category == category for item in view.objects)
    return f"how many {category}s are there ?", NUMBERS[number]


def _relation(view: _View) -> _Pair | None:
    if len(view.objects) < 2:
        return None
    first, second = (view.objects[i] for i in view.rng.permutation(len(view.objects))[:2])
    horizontal = view.chance(0.5)
    axis = 0 if horizontal else 1
    distance = first.center[axis] - second.center[axis]
    same_cell = first.column == second.column if horizontal else first.row == second.row
    # In one cell the description, which names cells only, could not answer.
    if abs(distance) < _NEAREST_RELATION or same_cell:
        return None
    words = ("left of", "right of") if horizontal else ("above", "below")
    right, wrong = words[distance > 0], words[distance <= 0]
    one, other = (refer(item, view.objects, view.rng) for item in (first, second))
    if view.chance(0.5):
        choice = "left or right of" if horizontal else "above or below"
        return f"is the {one} {choice} the {other} ?", right.split()[0]
    if view.chance(0.5):
        return f"is the {one} {right} the {other} ?", "yes"
    return f"is the {one} {wrong} the {other} ?", "no"


def _position(view: _View) -> _Pair | None:
    item = choose(view.rng, view.objects)
    return f"where is the {refer(item, view.objects, view.rng)} ?", item.place


def _what_at(view: _View) -> _Pair | None:
    item = choose(view.rng, view.objects)
    alone = sum(other.place == item.place for other in view.objects) == 1
    if alone and view.chance(0.7):
        return f"what is at {item.place} ?", item.phrase
    row, column = (int(i) for i in view.rng.integers(len(ROWS), size=2))
    cell = (column * CELL_SIZE, row * CELL_SIZE, CELL_SIZE, CELL_SIZE)
    if any(other.overlaps(*cell) for other in view.objects):
        return None
    return f"what is at {ROWS[row]} {COLUMNS[column]} ?", "nothing"


def _background(view: _View) -> _Pair | None:
    return "what is the background ?", view.background


def _caption(view: _View) -> _Pair | None:
    return "describe the image .", caption(view.objects, view.background)


_ASK: dict[str, Callable[[_View], _Pair | None]] = {
    "color": _color,
    "shape": _shape,
    "presence": _presence,
    "letter": _letter,
    "digit": _digit,
    "count": _count,
    "relation": _relation,
    "position": _position,
    "what-at": _what_at,
    "background": _background,
    "caption": _caption,
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
    """One random question of a task, or None when this draw has no well-posed question.

    Raises:
        ValueError: there is no such task.
    """
    if task not in _ASK:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    pair = _ASK[task](_View(objects, background, rng))
    return None if pair is None else Question(task, *pair)
