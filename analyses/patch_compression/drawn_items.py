"""What lies in one cell of an image, how it is drawn, and what is asked about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from PIL import Image

from ...lens.scenes import COLORS, SHAPES
from ...lens.scenes.drawing import FloatArray, sprite
from ...lens.scenes.objects import choose
from .token_cells import Size, TokenCells

KINDS = ("object", "character", "color", "count")
"""What is compressed: a shape, a letter or digit, a cell full of colour, one to four shapes."""
CHARACTERS = tuple("AEHSX247")
NUMBERS = ("one", "two", "three", "four")
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {**COLORS, "white": (255, 255, 255), "black": (0, 0, 0)}
)
QUESTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "identity": MappingProxyType(
            {
                "object": "what shape is shown ?",
                "count": "what shape is shown ?",
                "character": "what letter or digit is shown ?",
            }
        ),
        "color": MappingProxyType(dict.fromkeys(KINDS, "what color is the object ?")),
        "count": MappingProxyType({"count": "how many objects are there ?"}),
        "background": MappingProxyType(dict.fromkeys(KINDS, "what color is the background ?")),
    }
)
"""By question and kind what is asked; a kind that is left out is not asked that."""

_TRIES = 100

Option = TypeVar("Option")


@dataclass(frozen=True)
class DrawnItem:
    """What one image shows, in one cell.

    Attributes:
        kind: One of `KINDS`.
        what: The shape or the character; empty for a cell full of colour.
        color: Of what is in the cell, a name of `COLORS`.
        count: How many.
        background: The colour of the rest, a name of `BACKGROUNDS`.
        box: Left, top, right, bottom of the cell, in pixels.
    """

    kind: str
    what: str
    color: str
    count: int
    background: str
    box: tuple[int, int, int, int]

    @property
    def words(self) -> tuple[str, ...]:
        """The words that name what is in the cell: what a lens may rightly read there."""
        return (self.color, self.what) if self.what else (self.color,)

    def answer(self, question: str) -> str:
        """The right answer to one of `QUESTIONS`."""
        answers = {
            "identity": self.what,
            "color": self.color,
            "count": NUMBERS[self.count - 1],
            "background": self.background,
        }
        return answers[question]

    def choices(self, question: str) -> tuple[str, ...]:
        """What may be answered to one of `QUESTIONS`."""
        if question == "identity":
            return CHARACTERS if self.kind == "character" else SHAPES
        return NUMBERS if question == "count" else tuple(BACKGROUNDS)

    def image(self, size: Size) -> Image.Image:
        """The picture: a plain background, and the cell."""
        picture = np.empty((size[1], size[0], 3), np.float32)
        picture[:] = BACKGROUNDS[self.background]
        left, top, right, bottom = self.box
        for x, y, alpha in self._parts(right - left, bottom - top):
            rows = slice(top + y, top + y + alpha.shape[0])
            columns = slice(left + x, left + x + alpha.shape[1])
            under = picture[rows, columns]
            over = alpha[..., None] * np.array(COLORS[self.color], np.float32)
            picture[rows, columns] = over + (1 - alpha[..., None]) * under
        return Image.fromarray(np.rint(picture).astype(np.uint8))

    def _parts(self, width: int, height: int) -> list[tuple[int, int, FloatArray]]:
        """Left, top and coverage of everything in a cell, in pixels from its corner."""
        if self.kind == "color":
            return [(0, 0, np.ones((height, width), np.float32))]
        side = min(width, height)
        if self.kind != "count":
            alpha = sprite(self.what, side)
            return [((width - side) // 2, (height - side) // 2, alpha)]
        half = side // 2  # a pixel is left between neighbours
        small = sprite(self.what, half - 1)
        return [(i % 2 * (width - half + 1), i // 2 * half, small) for i in range(self.count)]


def drawn_items(
    cells: TokenCells, n: int, kinds: Sequence[str], rng: np.random.Generator
) -> list[DrawnItem]:
    """As many items of each kind, balanced in what is shown, no two alike.

    Every background differs from the colour of the object, and cells are drawn at random, all
    equally likely: where a thing lies says nothing about what it is.
    """
    found: dict[DrawnItem, None] = {}
    for number, kind in enumerate(kinds):
        share = len(range(number, n, len(kinds)))
        shown = _balanced(CHARACTERS if kind == "character" else SHAPES, share, rng)
        colors = _balanced(tuple(COLORS), share, rng)
        counts = _balanced(range(1, 5), share, rng) if kind == "count" else [1] * share
        for what, color, count in zip(shown, colors, counts, strict=True):
            others = tuple(name for name in BACKGROUNDS if name != color)
            for _ in range(_TRIES):
                left, top, right, bottom = cells.box[rng.integers(len(cells.box))].tolist()
                made = DrawnItem(
                    kind,
                    "" if kind == "color" else what,
                    color,
                    count,
                    choose(rng, others),
                    (left, top, right, bottom),
                )
                if made not in found:
                    break
            found[made] = None
    return list(found)


def _balanced(options: Sequence[Option], n: int, rng: np.random.Generator) -> list[Option]:
    """Every option as often as any other, or once more, in random order."""
    drawn: list[Option] = []
    while len(drawn) < n:
        drawn += [options[i] for i in rng.permutation(len(options))]
    return drawn[:n]
