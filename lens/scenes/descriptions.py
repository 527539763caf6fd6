"""Scenes in words: the caption, and the many ways of saying the same thing."""

from collections.abc import Sequence

import numpy as np

from .objects import SceneObject


def caption(objects: Sequence[SceneObject], background: str) -> str:
    """The one canonical sentence that the caption task asks for."""
    listed = " , ".join(f"{item.phrase} at {item.place}" for item in objects)
    return f"{listed} on a {background} background ."


def describe(objects: Sequence[SceneObject], background: str, rng: np.random.Generator) -> str:
    """A random wording, half the time in random order. Says everything the questions ask."""
    order = rng.permutation(len(objects)) if rng.random() < 0.5 else range(len(objects))
    items = [objects[i] for i in order]
    wording = rng.random()
    if wording < 0.3:
        listed = " , ".join(f"a {item.phrase} at {item.place}" for item in items)
        return f"{listed} on a {background} background ."
    if wording < 0.55:
        told = " ".join(f"there is a {item.phrase} at the {item.place} ." for item in items)
        return f"{told} the background is {background} ."
    if wording < 0.8:
        table = " . ".join(f"{item.place} : {item.phrase}" for item in items)
        return f"{background} background . {table} ."
    told = " ".join(f"the {item.noun} at {item.place} is {item.color} ." for item in items)
    return f"the background is {background} . {told}"


def refer(item: SceneObject, objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    """A phrase that fits this object of the scene and no other."""
    one_of_its_kind = sum(other.kind == item.kind for other in objects) == 1
    one_of_its_color = sum(other.color == item.color for other in objects) == 1
    wish = rng.random()
    if one_of_its_kind and wish < 0.6:
        return item.noun
    if one_of_its_color and wish > 0.8:
        return f"{item.color} object"
    return item.phrase
