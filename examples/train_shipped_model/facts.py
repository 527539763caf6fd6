"""What the language model knows besides the scenes: everyday facts in the same few words.

They give words that name nothing in a picture a life of their own, so that reading a visual
token as a word can go wrong.
"""

from collections.abc import Callable, Sequence

import numpy as np

from embedlens.lens.scenes import COLORS, DIGITS, LETTERS, SHAPES

COLOR_OF = {
    thing: color
    for color, things in (
        ("yellow", "banana lemon sun"),
        ("red", "tomato blood cherry rose"),
        ("green", "grass frog leaf"),
        ("blue", "sky sea"),
        ("purple", "plum grape"),
        ("orange", "carrot pumpkin"),
        ("pink", "pig flamingo"),
        ("white", "snow milk"),
        ("black", "coal night"),
        ("cyan", "lagoon ice"),
    )
    for thing in things.split()
}
SHAPE_OF = {
    thing: shape
    for shape, things in (
        ("circle", "ball wheel coin"),
        ("square", "box window"),
        ("triangle", "pyramid roof"),
        ("ring", "bracelet donut"),
        ("diamond", "kite"),
        ("heart", "love"),
        ("cross", "church"),
        ("star", "sheriff"),
    )
    for thing in things.split()
}
OPPOSITES = (
    ("left", "right"),
    ("above", "below"),
    ("top", "bottom"),
    ("upper", "lower"),
    ("yes", "no"),
    ("black", "white"),
    ("big", "small"),
    ("hot", "cold"),
    ("day", "night"),
)
MIXTURES = (
    ("red", "yellow", "orange"),
    ("red", "blue", "purple"),
    ("blue", "yellow", "green"),
    ("red", "white", "pink"),
    ("blue", "green", "cyan"),
)
NUMBERS = ("zero", "one", "two", "three", "four")
ANIMALS = "cat dog cow horse sheep lion tiger bear fox wolf mouse frog pig bird duck fish".split()
FOODS = "bread rice soup cake cheese apple banana lemon cherry grape carrot tomato".split()
VERBS = "sees likes eats wants finds buys sells paints draws carries".split()
PEOPLE = "anna ben carl dora emma fred gina hugo".split()
PLACES = "house garden river forest city school market beach mountain station".split()
TIMES = "today yesterday tomorrow monday friday sunday morning evening".split()

Fact = tuple[str, str, str]
"""Sentence, question, answer; the last two empty for a mere story."""


class Chooser:
    """Draws from lists."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def number(self, below: int) -> int:
        return int(self.rng.integers(below))

    def word(self, options: Sequence[str]) -> str:
        return options[self.number(len(options))]


def _thing_color(choose: Chooser) -> Fact:
    thing = choose.word(list(COLOR_OF))
    color = COLOR_OF[thing]
    return f"the {thing} is {color} .", f"what color is the {thing} ?", color


def _thing_shape(choose: Chooser) -> Fact:
    thing = choose.word(list(SHAPE_OF))
    shape = SHAPE_OF[thing]
    return f"the {thing} looks like a {shape} .", f"what shape is the {thing} ?", shape


def _alphabet(choose: Chooser) -> Fact:
    index = choose.number(len(LETTERS) - 1)
    one, following = LETTERS[index : index + 2]
    return f"the letter {following} comes after {one} .", f"what comes after {one} ?", following


def _counting(choose: Chooser) -> Fact:
    digit = choose.number(9)
    following = str(digit + 1)
    return f"the digit {following} comes after {digit} .", f"what comes after {digit} ?", following


def _meaning(choose: Chooser) -> Fact:
    digit = choose.number(5)
    word = NUMBERS[digit]
    return f"the digit {digit} means {word} .", f"what does {digit} mean ?", word


def _sum(choose: Chooser) -> Fact:
    one = choose.number(5)
    other = choose.number(5 - one)
    terms, total = f"{NUMBERS[one]} plus {NUMBERS[other]}", NUMBERS[one + other]
    return f"{terms} is {total} .", f"what is {terms} ?", total


def _opposite(choose: Chooser) -> Fact:
    pair = OPPOSITES[choose.number(len(OPPOSITES))]
    one, other = pair if choose.rng.random() < 0.5 else pair[::-1]
    return f"the opposite of {one} is {other} .", f"what is the opposite of {one} ?", other


def _category(choose: Chooser) -> Fact:
    members = (
        (choose.word(list(COLORS)), "color"),
        (choose.word(SHAPES), "shape"),
        (f"letter {choose.word(LETTERS)}", "symbol"),
        (f"digit {choose.word(DIGITS)}", "symbol"),
        (choose.word(ANIMALS), "animal"),
        (choose.word(FOODS), "food"),
        (choose.word(PLACES), "place"),
        (choose.word(NUMBERS), "number"),
    )
    member, category = members[choose.number(len(members))]
    return f"{member} is a {category} .", f"is {member} a {category} ?", "yes"


def _mixture(choose: Chooser) -> Fact:
    one, other, mixed = MIXTURES[choose.number(len(MIXTURES))]
    return f"{one} and {other} make {mixed} .", f"what do {one} and {other} make ?", mixed


def _meal(choose: Chooser) -> Fact:
    person, food, place = (choose.word(words) for words in (PEOPLE, FOODS, PLACES))
    return f"{person} eats the {food} at the {place} .", "", ""


def _errand(choose: Chooser) -> Fact:
    lists = TIMES, PEOPLE, VERBS, list(COLORS), SHAPES
    time, person, verb, color, shape = (choose.word(words) for words in lists)
    return f"{time} {person} {verb} a {color} {shape} .", "", ""


def _fable(choose: Chooser) -> Fact:
    lists = ANIMALS, VERBS, ANIMALS + FOODS, PLACES
    animal, verb, other, place = (choose.word(words) for words in lists)
    return f"the {animal} {verb} the {other} near the {place} .", "", ""


def _walk(choose: Chooser) -> Fact:
    person, place, time = (choose.word(words) for words in (PEOPLE, PLACES, TIMES))
    return f"{person} goes to the {place} {time} .", "", ""


FAMILIES: tuple[Callable[[Chooser], Fact], ...] = (
    _thing_color,
    _thing_shape,
    _alphabet,
    _counting,
    _meaning,
    _sum,
    _opposite,
    _category,
    _mixture,
    _meal,
    _errand,
    _fable,
    _walk,
)


def fact(rng: np.random.Generator) -> Fact:
    """One random fact or story sentence."""
    choose = Chooser(rng)
    return FAMILIES[choose.number(len(FAMILIES))](choose)
