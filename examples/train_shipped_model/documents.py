"""The training documents: copies, lookups, facts, scenes in words, scenes in pictures."""

from collections.abc import Sequence

import numpy as np
from facts import fact
from packing import Block, Document
from relations import mentions
from tokens import ASSISTANT, BOS, EOS, FIRST_WORD, IDS, IMAGE, USER, VISUAL_TOKENS, encode

from embedlens.lens.scenes import COLORS, COLUMNS, DIGITS, KINDS, ROWS, SHAPES, Question, Scene

QUESTIONS = 8
CELL_QUESTIONS = 10
BINDING = ("color", "shape", "presence", "relation", "position", "what-at")
LOOKUP_WEIGHT, LIST_WEIGHT, TEXT_WEIGHT = 2.0, 0.1, 0.25
SCENE_SEEDS = 2**40
OTHER_SEEDS = 2**31


def copies(rng: np.random.Generator) -> Document:
    """Random words, then the same again: what teaches a decoder to look things up at all."""
    n = int(rng.integers(10, 25))
    words = rng.choice(np.arange(FIRST_WORD, len(IDS)), n, replace=False).tolist()
    return Document([BOS, *words, *words], [0.0] * (n + 2) + [1.0] * (n - 1))


def lookups(rng: np.random.Generator) -> Document:
    """A list of objects, then each one asked for again in another order."""
    n = int(rng.integers(3, 9))
    kinds = rng.choice(np.array(KINDS), n, replace=False).tolist()
    colors = [list(COLORS)[int(rng.integers(len(COLORS)))] for _ in kinds]
    cells = rng.choice(len(ROWS) * len(COLUMNS), n, replace=False).tolist()
    places = [f"{ROWS[cell // 5]} {COLUMNS[cell % 5]}" for cell in cells]
    things = list(zip(map(_noun, kinds), colors, places, strict=True))
    told = ("color", "place", "both")[int(rng.integers(3))]
    as_list = bool(rng.integers(2))
    said = [(_listed(*thing, told, as_list), LIST_WEIGHT) for thing in things]
    for index in rng.permutation(n):
        question, answer = _asked(*things[index], told, float(rng.random()))
        said += [(f"{question} assistant :", 0.0), (answer, LOOKUP_WEIGHT), (".", LIST_WEIGHT)]
    ids, weights = [BOS], [0.0]
    for text, weight in said:
        ids += encode(text)
        weights += [weight] * len(encode(text))
    return Document(ids, weights)


def _listed(noun: str, color: str, place: str, told: str, as_list: bool) -> str:
    if told == "color":
        return f"a {color} {noun} ," if as_list else f"the {noun} is {color} ."
    name = noun if told == "place" else f"{color} {noun}"
    return f"a {name} at {place} ," if as_list else f"{place} : {name} ."


def _asked(noun: str, color: str, place: str, told: str, wish: float) -> tuple[str, str]:
    if told == "color" or (told == "both" and wish < 0.4):
        return f"what color is the {noun} ?", color
    if told == "place" or wish < 0.7:
        return f"where is the {noun} ?", place
    return f"what is at {place} ?", f"{color} {noun}"


def _noun(kind: str) -> str:
    if kind in SHAPES:
        return kind
    return f"digit {kind}" if kind in DIGITS else f"letter {kind}"


def facts(rng: np.random.Generator) -> Document:
    """A few facts and stories, read or not, and questions about facts."""
    known = [fact(rng) for _ in range(9)]
    read = " ".join(sentence for sentence, _, _ in known[:5])
    prefix = [BOS, *encode(read)] if rng.random() < 0.5 else [BOS]
    blocks = [
        Block("fact", [*encode(f"user : {question}"), *ASSISTANT], [*encode(answer), EOS])
        for _, question, answer in known
        if question
    ]
    return Document(prefix, [TEXT_WEIGHT] * len(prefix), blocks, LOOKUP_WEIGHT)


def cells(rng: np.random.Generator) -> Document:
    """Named cells and how they lie to each other: the order of the place words."""
    blocks: list[Block] = []
    while len(blocks) < CELL_QUESTIONS:
        places = rng.integers(0, len(ROWS), (2, 2))
        axis = int(rng.integers(2))
        if places[0, axis] == places[1, axis]:
            continue
        first, second = (f"{ROWS[row]} {COLUMNS[column]}" for row, column in places.tolist())
        low, high = (("above", "below"), ("left of", "right of"))[axis]
        right, wrong = (low, high) if places[0, axis] < places[1, axis] else (high, low)
        if rng.random() < 0.5:
            text = f"is {first} {low.split()[0]} or {high} {second} ?"
            answer = right.split()[0]
        elif rng.random() < 0.5:
            text, answer = f"is {first} {right} {second} ?", "yes"
        else:
            text, answer = f"is {first} {wrong} {second} ?", "no"
        asked = [*encode(f"user : {text}"), *ASSISTANT]
        blocks.append(Block("cells", asked, [*encode(answer), EOS]))
    return Document([BOS], [0.0], blocks)


def comparisons(rng: np.random.Generator) -> Document:
    """Two to four objects in words, asked only where they are and how they relate."""
    seed, n_objects = int(rng.integers(SCENE_SEEDS)), int(rng.integers(2, 5))
    scene = Scene.sample(seed, split="train", n_objects=n_objects)
    return scene_in_words(scene, rng, tasks=("relation", "position"))


def scene_in_words(
    scene: Scene, rng: np.random.Generator, tasks: Sequence[str] | None = None
) -> Document:
    """A scene's text twin and questions about it."""
    prefix = [*USER, *encode(scene.describe(int(rng.integers(OTHER_SEEDS))))]
    blocks = _questions(scene, rng, tasks)
    return Document(prefix, [TEXT_WEIGHT] * len(prefix), blocks, LOOKUP_WEIGHT)


def scene_in_pixels(
    scene: Scene, rng: np.random.Generator, tasks: Sequence[str] | None = None
) -> Document:
    """Placeholders of a scene's picture and questions about it."""
    prefix = [*USER, *[IMAGE] * VISUAL_TOKENS]
    blocks = _questions(scene, rng, tasks)
    return Document(prefix, [0.0] * len(prefix), blocks, LOOKUP_WEIGHT)


def train_scene(rng: np.random.Generator) -> Scene:
    """A scene that was, almost surely, never seen before."""
    return Scene.sample(int(rng.integers(SCENE_SEEDS)), split="train")


def block(question: Question, scene: Scene) -> Block:
    """A question about a scene as token ids."""
    asked = [*encode(question.text), *ASSISTANT]
    named = tuple(mentions(question.text.split(), scene.objects))
    return Block(question.task, asked, [*encode(question.answer), EOS], named)


def _questions(scene: Scene, rng: np.random.Generator, tasks: Sequence[str] | None) -> list[Block]:
    seed = int(rng.integers(OTHER_SEEDS))
    asked = scene.questions(QUESTIONS, seed=seed, tasks=tasks)
    return [block(question, scene) for question in asked]
