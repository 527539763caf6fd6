"""Which tokens: a small expression language, and the same thing as Python objects.

    visual & ~dead            image[1] | last            box[0:4, 2:6] & alive
    patch & tile[0]           visual & ~newline          random(like=dead, within=alive, seed=0)
    near[1141]                control(of=dead, seed=0)   (the paper's; see :mod:`.paper`)

The text form and the objects round-trip. Evaluation gives one mask over the prompt's positions
and one flag per sample for the tokens still to be generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..errors import InputError, Unsupported
from ..inputs.batch import Batch
from ..token_classes import MARKER_KINDS
from ..visual_tokens import KINDS

CLASSES = ("sink", *MARKER_KINDS, "alive")
NAMES = ("visual", "text", "bos", "last", "generated", *KINDS, *CLASSES)


@dataclass(frozen=True)
class Selection:
    """Selected tokens of one batch."""

    prompt: NDArray[np.bool_]  # positions of the padded prompt, ``[sample, token]``
    generated: NDArray[np.bool_]  # whether generated tokens are selected too, ``[sample]``


class Selector:
    """Base of all selectors; combine with ``&``, ``|`` and ``~``."""

    def select(self, batch: Batch) -> Selection:
        """The tokens of ``batch`` that are meant."""
        raise NotImplementedError

    def __and__(self, other: Selector) -> Selector:
        return And(self, other)

    def __or__(self, other: Selector) -> Selector:
        return Or(self, other)

    def __invert__(self) -> Selector:
        return Not(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.to_string_ser_schema(when_used="always")
        return core_schema.is_instance_schema(Selector, serialization=written)


@dataclass(frozen=True)
class Name(Selector):
    """A named set: visual, text, bos, last, generated, a kind or a class of visual tokens.

    ``text`` is every position that is neither visual nor padding, BOS and generated tokens
    included; ``last`` is the last prompt position and, while decoding, the newest token. The kinds
    (patch, newline, separator, latent, unplaced) are those of ``VisualTokens.kind``.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise InputError(f"no tokens are called {self.name!r}; there are: {', '.join(NAMES)}")

    def __str__(self) -> str:
        return self.name

    def select(self, batch: Batch) -> Selection:
        """The named tokens; InputError for a class of a batch that has no classes."""
        real = _real(batch)
        found = visual_selection(batch, np.ones(len(batch.visual), dtype=bool))
        visual, nothing = found.prompt, found.generated
        if self.name == "visual":
            return found
        if self.name == "text":
            return Selection(real & ~visual, ~nothing)
        if self.name == "generated":
            return Selection(np.zeros_like(real), ~nothing)
        if self.name == "bos":
            first = real & (np.cumsum(real, axis=1) == 1)
            return Selection(first, nothing)
        if self.name == "last":
            last = np.zeros_like(real)
            last[:, -1] = True
            return Selection(last, ~nothing)
        if self.name in KINDS:
            return visual_selection(batch, batch.visual.kind == self.name)
        if batch.classes is None:
            raise InputError(
                f"tokens {self.name!r} need classes, and this batch has none: "
                "batch = batch.with_classes(markers.classify(model, batch))"
            )
        return visual_selection(batch, batch.classes.mask(self.name))


@dataclass(frozen=True)
class _Indexed(Selector):
    """Visual tokens whose number of one kind is given; each kind says of which."""

    word: ClassVar[str]
    column: ClassVar[str]

    index: int

    def __post_init__(self) -> None:
        check_number(self, self.index)

    def __str__(self) -> str:
        return f"{self.word}[{self.index}]"

    def select(self, batch: Batch) -> Selection:
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

    rows: tuple[int, int]
    cols: tuple[int, int]

    def __post_init__(self) -> None:
        for first, end in (self.rows, self.cols):
            check_number(self, first)
            check_number(self, end)
            if end <= first:
                raise InputError(f"{self}: the span {first}:{end} has its end before its first")

    def __str__(self) -> str:
        return f"box[{self.rows[0]}:{self.rows[1]}, {self.cols[0]}:{self.cols[1]}]"

    def select(self, batch: Batch) -> Selection:
        """Tokens whose cell lies inside the box; Unsupported for images without any cell."""
        self._need_places(batch)
        row, col = batch.visual.row, batch.visual.col
        inside = (self.rows[0] <= row) & (row < self.rows[1])
        inside &= (self.cols[0] <= col) & (col < self.cols[1])
        return visual_selection(batch, inside)

    def _need_places(self, batch: Batch) -> None:
        visual = batch.visual
        images = np.stack([visual.sample, visual.image], axis=1)
        for sample, image in np.unique(images[~visual.placed], axis=0):
            here = (visual.sample == sample) & (visual.image == image)
            if not visual.placed[here].any():
                kinds = " and ".join(np.unique(visual.kind[here]))
                raise Unsupported(
                    f"{self}: image {image} of sample {sample} has {kinds} tokens only, which have "
                    "no place in the image; select by image[i] or tile[i]"
                )


@dataclass(frozen=True)
class Random(Selector):
    """``random(like=A, within=B, seed=0)``: in each sample as many tokens of B as A has.

    Drawn without replacement from its own generator, so the draw depends on the seed, the
    sample's content and the sizes only: a matched control that can be repeated, in any batch.
    """

    like: Selector
    within: Selector = Name("visual")
    seed: int = 0

    def __post_init__(self) -> None:
        check_number(self, self.seed)
        _check_parts(self.like, self.within)

    def __str__(self) -> str:
        return f"random(like={self.like}, within={self.within}, seed={self.seed})"

    def select(self, batch: Batch) -> Selection:
        """One draw per sample; InputError where ``within`` has fewer tokens than ``like``."""
        like, within = self.like.select(batch).prompt, self.within.select(batch).prompt
        drawn = np.zeros_like(like)
        for sample in range(len(batch)):
            wanted, pool = int(like[sample].sum()), np.flatnonzero(within[sample])
            if wanted > len(pool):
                raise InputError(
                    f"{self}: sample {sample} has {wanted} tokens of {self.like} but only "
                    f"{len(pool)} of {self.within} to draw from"
                )
            generator = np.random.default_rng([self.seed, batch.contents[sample]])
            drawn[sample, generator.choice(pool, wanted, replace=False)] = True
        return Selection(drawn, np.zeros(len(batch), dtype=bool))


@dataclass(frozen=True)
class _Joined(Selector):
    """Two selectors joined by a logical function; each kind says by which."""

    how: ClassVar[np.ufunc]

    left: Selector
    right: Selector

    def __post_init__(self) -> None:
        _check_parts(self.left, self.right)

    def select(self, batch: Batch) -> Selection:
        """Both selections, joined."""
        one, other = self.left.select(batch), self.right.select(batch)
        prompt, generated = (one.prompt, other.prompt), (one.generated, other.generated)
        return Selection(self.how(*prompt), self.how(*generated))


class And(_Joined):
    """Tokens in both."""

    how = np.logical_and

    def __str__(self) -> str:
        return f"{_group(self.left, Or)} & {_group(self.right, (Or, And))}"


class Or(_Joined):
    """Tokens in either."""

    how = np.logical_or

    def __str__(self) -> str:
        return f"{self.left} | {_group(self.right, Or)}"


@dataclass(frozen=True)
class Not(Selector):
    """Every other token; padding is never selected."""

    inner: Selector

    def __post_init__(self) -> None:
        _check_parts(self.inner)

    def __str__(self) -> str:
        return f"~{_group(self.inner, (And, Or))}"

    def select(self, batch: Batch) -> Selection:
        """The complement among the tokens that are not padding."""
        inner = self.inner.select(batch)
        return Selection(_real(batch) & ~inner.prompt, ~inner.generated)


def check_number(selector: Selector, number: object) -> None:
    """Refuse what is no number that could count something."""
    whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
    if not whole or number < 0:  # type: ignore[operator]
        raise InputError(f"{selector}: a whole number, 0 or larger, is needed, not {number!r}")


def _check_parts(*parts: object) -> None:
    for part in parts:
        if not isinstance(part, Selector):
            raise InputError(f"{part!r} is no selector: write Name('visual') or parse_selector(…)")


def _group(selector: Selector, looser: type[Selector] | tuple[type[Selector], ...]) -> str:
    return f"({selector})" if isinstance(selector, looser) else str(selector)


def _real(batch: Batch) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = batch.inputs["attention_mask"].cpu().numpy() > 0
    return mask


def visual_selection(batch: Batch, chosen: NDArray[np.bool_]) -> Selection:
    """Some of a batch's visual tokens, ``[visual token]``, as a selection."""
    mask = np.zeros((len(batch), batch.length), dtype=bool)
    mask[batch.visual.sample[chosen], batch.visual.position[chosen]] = True
    return Selection(mask, np.zeros(len(batch), dtype=bool))
