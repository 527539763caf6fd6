"""Images exchanged between items: what a model answers without having seen the right image."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ...lens.errors import InputError
from .items import Item, Picture

_TRIES = 100


def with_wrong_images(items: Sequence[Item], seeds: Iterable[int]) -> list[Item]:
    """The items, each with the images of another one for every seed.

    All questions about an image get the same other one, every image is shown in place of exactly
    one other, and as many images as a question has are shown. What the other image shows may have
    the same answer: that is the share that a wrong image leaves right.

    Raises:
        InputError: A question with so many images that no other has, or images of which every
            other has one in common.
    """
    found = list(items)
    for seed in seeds:
        other = _exchanged([item.pictures for item in items], seed)
        found = [
            replace(item, wrong={**item.wrong, seed: other[_content(item.pictures)]})
            for item in found
        ]
    return found


def _exchanged(
    shown: Sequence[tuple[Picture, ...]], seed: int
) -> dict[tuple[str, ...], tuple[Picture, ...]]:
    """By the contents of an item's images those of another one."""
    unique = {_content(pictures): pictures for pictures in shown}
    made: dict[tuple[str, ...], tuple[Picture, ...]] = {}
    for number in sorted({len(content) for content in unique}):
        contents = sorted(content for content in unique if len(content) == number)
        if number == 0:
            raise InputError("wrong_image: there is an item without an image to exchange")
        for attempt in range(_TRIES):
            order = list(contents)
            random.Random(f"{seed} {attempt}").shuffle(order)
            # One circle through all of them: none stays where it is.
            pairs = dict(zip(order, [*order[1:], order[0]], strict=True))
            if all(not set(own) & set(other) for own, other in pairs.items()):
                made |= {own: unique[other] for own, other in pairs.items()}
                break
        else:
            raise InputError(
                f"wrong_image: the {len(contents)} different images of items with {number} "
                "cannot be exchanged so that none stays: add other images"
            )
    return made


def _content(pictures: Sequence[Picture]) -> tuple[str, ...]:
    return tuple(picture.digest for picture in pictures)
