"""How objects lie to each other: what scenes ask too seldom to teach it.

To compare two objects one must first find both. So three kinds of comparisons stand side by
side, each a step further: of two named cells, of an object with a named cell, of two objects.
"""

from collections.abc import Sequence

import numpy as np
from packing import Block, Document
from tokens import ASSISTANT, EOS, USER, encode

from embedlens.lens.scenes import BACKGROUNDS, COLORS, COLUMNS, KINDS, ROWS, SceneObject
from embedlens.lens.scenes.descriptions import describe, refer
from embedlens.lens.scenes.vocabulary import category_of

FEWEST, MOST = 2, 6
LONGEST = 160
LIST_WEIGHT, ANSWER_WEIGHT = 0.1, 2.0
PLACE_SHARE, CELL_SHARE = 0.2, 0.3
AXES = (("above", "below"), ("left of", "right of"))

Named = tuple[str, tuple[int, int]]
"""Words, and the row and column of what they name."""


def relations(rng: np.random.Generator) -> Document:
    """A few objects in words, then as many questions on where they lie as fit."""
    objects = _objects(rng)
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    prefix = [*USER, *encode(describe(objects, background, rng))]
    blocks: list[Block] = []
    length = len(prefix)
    while True:
        block = _question(objects, rng)
        length += len(block.question) + len(block.answer)
        if length > LONGEST:
            return Document(prefix, [LIST_WEIGHT] * len(prefix), blocks, ANSWER_WEIGHT)
        blocks.append(block)


def mentions(words: Sequence[str], objects: Sequence[SceneObject]) -> list[tuple[int, int, int]]:
    """Where in a question the name of exactly one object ends, and that object's cell."""
    found = []
    for at in range(len(words)):
        for item in objects:
            for name in _names(item, objects):
                if list(words[at + 1 - len(name) : at + 1]) == name and at + 1 >= len(name):
                    found.append((at, item.row, item.column))
                    break
    return found


def _names(item: SceneObject, objects: Sequence[SceneObject]) -> list[list[str]]:
    names = [item.phrase.split()]
    if sum(other.kind == item.kind for other in objects) == 1:
        names.append(item.noun.split())
    if sum(other.color == item.color for other in objects) == 1:
        names.append([item.color, "object"])
    return names


def _objects(rng: np.random.Generator) -> list[SceneObject]:
    n = int(rng.integers(FEWEST, MOST + 1))
    kinds = rng.choice(np.array(KINDS), n, replace=False).tolist()
    colors = rng.choice(np.array(list(COLORS)), n).tolist()
    cells = rng.choice(len(ROWS) * len(COLUMNS), n, replace=False).tolist()
    if rng.random() < 0.2:
        kinds[1] = kinds[0]
        colors[:2] = rng.choice(np.array(list(COLORS)), 2, replace=False).tolist()
    return [
        SceneObject(kind, color, category_of(kind), 0, 0, 0, *divmod(cell, len(COLUMNS)))
        for kind, color, cell in zip(kinds, colors, cells, strict=True)
    ]


def _question(objects: Sequence[SceneObject], rng: np.random.Generator) -> Block:
    if rng.random() < PLACE_SHARE:
        item = objects[int(rng.integers(len(objects)))]
        return _block(
            "position", f"where is the {refer(item, objects, rng)} ?", item.place, objects
        )
    while True:
        first, second = (objects[i] for i in rng.permutation(len(objects))[:2])
        one, other = (_named(item, objects, rng) for item in (first, second))
        if rng.random() < CELL_SHARE:
            row, column = (int(i) for i in rng.integers(len(ROWS), size=2))
            cell = (f"{ROWS[row]} {COLUMNS[column]}", (row, column))
            one, other = (cell, other) if rng.random() < 0.5 else (one, cell)
        axis = int(rng.integers(2))
        if one[1][axis] != other[1][axis]:
            break
    low, high = AXES[axis]
    right, wrong = (low, high) if one[1][axis] < other[1][axis] else (high, low)
    if rng.random() < 0.5:
        text = f"is {one[0]} {low.split()[0]} or {high} {other[0]} ?"
        return _block("relation", text, right.split()[0], objects)
    said, answer = (right, "yes") if rng.random() < 0.5 else (wrong, "no")
    return _block("relation", f"is {one[0]} {said} {other[0]} ?", answer, objects)


def _named(item: SceneObject, objects: Sequence[SceneObject], rng: np.random.Generator) -> Named:
    return f"the {refer(item, objects, rng)}", (item.row, item.column)


def _block(task: str, text: str, answer: str, objects: Sequence[SceneObject]) -> Block:
    asked = [*encode(text), *ASSISTANT]
    found = tuple(mentions(text.split(), objects))
    return Block(task, asked, [*encode(answer), EOS], found)
