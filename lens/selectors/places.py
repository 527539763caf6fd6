"""Visual tokens by their place: image, tile, frame, cells of the grid, pixels, neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..errors import InputError, Unsupported
from ..inputs.batch import Batch
from ..visual_tokens import VisualTokens
from .selector_types import Selection, Selector, Whole, check_parts, visual_selection, whole_number

Rule = Literal["meets", "inside", "center"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class _Indexed(Selector):
    """Visual tokens whose number of one kind is given; each kind says of which."""

    word: ClassVar[str]
    column: ClassVar[str]

    index: Whole

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", whole_number(self, self.index))

    def __str__(self) -> str:
        return f"{self.word}[{self.index}]"

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """The tokens of that number."""
        return visual_selection(batch, getattr(batch.visual, self.column) == self.index)


class ImageIs(_Indexed):
    """``image[i]``: the visual tokens of every sample's i-th image."""

    word, column = "image", "image"


class TileIs(_Indexed):
    """``tile[i]``: the visual tokens of every image's i-th tile, as the model sees the tiles."""

    word, column = "tile", "tile"


class FrameIs(_Indexed):
    """``frame[i]``: the visual tokens of every video's i-th frame; stills are frame 0."""

    word, column = "frame", "time"


@dataclass(frozen=True)
class Box(Selector):
    """``box[r0:r1, c0:c1]``: cells of the visual grid, ends excluded, in every tile and frame."""

    rows: tuple[Whole, Whole]
    cols: tuple[Whole, Whole]

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            object.__setattr__(self, name, _span(self, getattr(self, name)))

    def __str__(self) -> str:
        return f"box[{self.rows[0]}:{self.rows[1]}, {self.cols[0]}:{self.cols[1]}]"

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """Tokens whose cell lies inside the box; Unsupported for images without any cell."""
        need_places(self, batch)
        row, col = batch.visual.row, batch.visual.col
        inside = (self.rows[0] <= row) & (row < self.rows[1])
        inside &= (self.cols[0] <= col) & (col < self.cols[1])
        return visual_selection(batch, inside)


@dataclass(frozen=True)
class _Lines(Selector):
    """Rows or columns of every grid, counted from its end where negative; each kind says which."""

    word: ClassVar[str]
    column: ClassVar[str]

    first: Whole
    end: Whole | Literal["one"] | None = "one"  # of a span, None to the last; or one line

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", whole_number(self, self.first, negative=True))
        if self.end is not None and self.end != "one":
            object.__setattr__(self, "end", whole_number(self, self.end, negative=True))

    def __str__(self) -> str:
        span = "" if self.end == "one" else f":{'' if self.end is None else self.end}"
        return f"{self.word}[{self.first}{span}]"

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """Tokens in these lines of their own grid; Unsupported for images without any cell."""
        need_places(self, batch)
        visual, chosen = batch.visual, np.zeros(len(batch.visual), dtype=bool)
        for here in grids(visual):
            lines = getattr(visual, self.column)[here]
            there = range(int(lines.max()) + 1)
            if self.end == "one":
                wanted = [self.first % len(there)] if -len(there) <= self.first else []
                wanted = wanted if self.first < len(there) else []
            else:
                wanted = list(there[self.first : self.end])
            chosen[here] = np.isin(lines, wanted)
        return visual_selection(batch, chosen)


class Rows(_Lines):
    """``row[-1]``, ``row[2:4]``, ``row[-2:]``: rows of the grid of every image, tile and frame."""

    word, column = "row", "row"


class Columns(_Lines):
    """``column[0]``, ``column[-2:]``: columns of the grid of every image, tile and frame."""

    word, column = "column", "col"


@dataclass(frozen=True)
class Pixels(Selector):
    """``pixels[x0:x1, y0:y1]``: tokens whose part of the original image meets a box of pixels.

    Ends are excluded. ``pixels[x0:x1, y0:y1, inside]`` means tokens that lie in the box as a
    whole, ``center`` those whose centre does. Of an image that was cut, tokens of all tiles.
    """

    x: tuple[Whole, Whole]
    y: tuple[Whole, Whole]
    rule: Rule = "meets"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise InputError(f"pixels: there is no rule {self.rule!r}; rules: {', '.join(RULES)}")
        for name in ("x", "y"):
            object.__setattr__(self, name, _span(self, getattr(self, name)))

    def __str__(self) -> str:
        rule = "" if self.rule == "meets" else f", {self.rule}"
        return f"pixels[{self.x[0]}:{self.x[1]}, {self.y[0]}:{self.y[1]}{rule}]"

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """Those tokens; Unsupported where it is not known which pixels an image's tokens show."""
        visual = batch.visual
        known = np.isfinite(visual.box[:, 0])
        for sample, image, here in _images(visual):
            if not known[here].any():
                raise Unsupported(
                    f"{self}: it is not known which pixels the tokens of image {image} of sample "
                    f"{sample} show (a video, a batch made from tensors, or learned queries)"
                )
        left, top, right, bottom = visual.box.T
        # Comparisons with what is not known are False.
        if self.rule == "inside":
            inside = (left >= self.x[0]) & (right <= self.x[1])
            inside &= (top >= self.y[0]) & (bottom <= self.y[1])
        elif self.rule == "center":
            across, down = (left + right) / 2, (top + bottom) / 2
            inside = (across >= self.x[0]) & (across < self.x[1])
            inside &= (down >= self.y[0]) & (down < self.y[1])
        else:
            inside = (left < self.x[1]) & (right > self.x[0])
            inside &= (top < self.y[1]) & (bottom > self.y[0])
        return visual_selection(batch, inside)


@dataclass(frozen=True)
class Dilated(Selector):
    """``dilate(A, 1)``: A and all cells of the same grid up to so many steps away, diagonals too.

    Each image, tile and frame has a grid of its own, and no neighbours in another.
    """

    inner: Selector
    steps: Whole = 1

    def __post_init__(self) -> None:
        check_parts(self.inner)
        object.__setattr__(self, "steps", whole_number(self, self.steps))

    def __str__(self) -> str:
        return f"dilate({self.inner}, {self.steps})"

    def parts(self) -> tuple[Selector, ...]:
        """What is dilated."""
        return (self.inner,)

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """The wider set; InputError where a token of the inner one has no cell."""
        visual, inner = batch.visual, self.inner.select(batch, layer)
        mine = inner.prompt[visual.sample, visual.position]
        without = mine & ~visual.placed
        if without.any() or int(mine.sum()) != int(inner.prompt.sum()) or inner.generated.any():
            kinds = np.unique(visual.kind[without]).tolist() or ["text"]
            raise InputError(
                f"{self}: some of {self.inner} ({', '.join(kinds)}) have no cell, so no neighbours "
                f"in the image: write dilate(({self.inner}) & patch, {self.steps})"
            )
        chosen = np.zeros_like(mine)
        for here in grids(visual):
            cells = visual.row[here], visual.col[here]
            grid = np.zeros((cells[0].max() + 1, cells[1].max() + 1), dtype=bool)
            grid[cells] = mine[here]
            chosen[here] = ndimage.maximum_filter(grid, 2 * self.steps + 1, mode="constant")[cells]
        return visual_selection(batch, chosen)


def grids(visual: VisualTokens) -> Iterator[NDArray[np.intp]]:
    """The tokens with a cell of each grid: of one sample, image, tile and frame."""
    keys = np.stack([visual.sample, visual.image, visual.tile, visual.time], axis=1)
    placed = np.flatnonzero(visual.placed)
    if len(placed):
        _, of = np.unique(keys[placed], axis=0, return_inverse=True)
        of = of.ravel()
        for number in range(int(of.max()) + 1):
            yield placed[of == number]


def need_places(selector: Selector, batch: Batch) -> None:
    """Refuse images whose tokens have no cell at all."""
    visual = batch.visual
    for sample, image, here in _images(visual):
        if not visual.placed[here].any():
            kinds = " and ".join(np.unique(visual.kind[here]))
            raise Unsupported(
                f"{selector}: image {image} of sample {sample} has {kinds} tokens only, which have "
                "no place in the image; select by image[i] or tile[i]"
            )


def _images(visual: VisualTokens) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Sample, image and tokens of every image."""
    keys = np.stack([visual.sample, visual.image], axis=1)
    for sample, image in np.unique(keys, axis=0).tolist():
        yield sample, image, (visual.sample == sample) & (visual.image == image)


def _span(selector: Selector, span: tuple[Whole, Whole]) -> tuple[int, int]:
    first, end = (whole_number(selector, number) for number in span)
    if end <= first:
        raise InputError(f"{selector}: the span {first}:{end} has its end before its first")
    return first, end
