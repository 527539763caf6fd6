"""Which tokens: a small expression language, and the same thing as Python objects.

    visual & ~dead            image[1] | last            random(like=dead, within=alive, seed=0)
    patch & tile[0]           box[0:4, 2:6] & alive      row[-1] | column[0:2]
    pixels[40:90, 0:64]       dilate(object, 1)          question & ~words["is it"]
    sink@3                    near[1141]                 top(0.5, by=attention(last), layer=1)

The text form and the objects round-trip. Evaluation gives one mask over the prompt's positions
and one flag per sample for the tokens still to be generated. ``object`` stands for any name of
one's own, for a set that the batch holds (:meth:`.Batch.with_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ..errors import InputError
from ..inputs.batch import Batch
from ..inputs.prompt_words import PromptWords
from ..token_classes import TokenClasses
from ..token_names import CLASSES, NAMES, check_own_name
from ..token_sets import in_layer
from ..visual_tokens import KINDS

if TYPE_CHECKING:
    Whole: TypeAlias = int
else:
    # Numpy's numbers too, which no type checker counts among the whole ones.
    Whole = Integral


@dataclass(frozen=True)
class Selection:
    """Selected tokens of one batch."""

    prompt: NDArray[np.bool_]  # positions of the padded prompt, ``[sample, token]``
    generated: NDArray[np.bool_]  # whether generated tokens are selected too, ``[sample]``


class Selector:
    """Base of all selectors; combine with ``&``, ``|`` and ``~``."""

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """The tokens of a batch that are meant, in one layer where sets differ by layer."""
        raise NotImplementedError

    def parts(self) -> tuple[Selector, ...]:
        """The selectors that it is made of."""
        return ()

    def nodes(self) -> Iterator[Selector]:
        """Itself and every selector that it is made of."""
        yield self
        for part in self.parts():
            yield from part.nodes()

    def differs_by_layer(self, batch: Batch) -> bool:
        """Whether it means other tokens in other layers of this batch."""
        return any(part.differs_by_layer(batch) for part in self.parts())

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
    """A named set: all, visual, text, question, bos, last, generated, a kind, a class, one's own.

    ``all`` is every position but padding, generated tokens included; ``text`` what of it is not
    visual, BOS included; ``question`` what of that are the user's own words, without template and
    system text; ``last`` is the last prompt position and, while decoding, the newest token. The
    kinds (patch, newline, separator, latent, unplaced) are those of ``VisualTokens.kind``. Any
    other name is that of a set which the batch holds (:meth:`.Batch.with_tokens`).
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            check_own_name(self.name)

    def __str__(self) -> str:
        return self.name

    def differs_by_layer(self, batch: Batch) -> bool:
        """Whether the batch has other tokens of that name in other layers."""
        if self.name in CLASSES:
            return bool(batch.layer_classes)
        return self.name in batch.token_sets and bool(batch.token_sets[self.name].by_layer)

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """The named tokens; InputError for a set that the batch does not hold."""
        real = batch.real
        found = visual_selection(batch, np.ones(len(batch.visual), dtype=bool))
        visual, nothing = found.prompt, found.generated
        if self.name == "visual":
            return found
        if self.name == "all":
            return Selection(real, ~nothing)
        if self.name == "text":
            return Selection(real & ~visual, ~nothing)
        if self.name == "question":
            return Selection(words_of(batch, self).own_words(), nothing)
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
        if self.name in CLASSES:
            return visual_selection(batch, self._of_class(batch, layer))
        return Selection(self._of_batch(batch, layer), nothing)

    def _of_class(self, batch: Batch, layer: int | None) -> NDArray[np.bool_]:
        if batch.layer_classes and (layer is not None or batch.classes is None):
            classes: TokenClasses = in_layer(batch.layer_classes, layer, self.name)
            return classes.mask(self.name)
        if batch.classes is None:
            raise InputError(
                f"tokens {self.name!r} need classes, and this batch has none: "
                "batch = batch.with_classes(markers.classify(model, batch))"
            )
        return batch.classes.mask(self.name)

    def _of_batch(self, batch: Batch, layer: int | None) -> NDArray[np.bool_]:
        held = batch.token_sets.get(self.name)
        if held is None:
            known = ", ".join(batch.token_sets) or "none"
            raise InputError(
                f"this batch holds no tokens called {self.name!r} (it holds: {known}): "
                f"batch = batch.with_tokens({self.name}=mask)"
            )
        if held.everywhere is not None:
            return held.everywhere
        mask: NDArray[np.bool_] = in_layer(held.by_layer, layer, self.name)
        return mask


@dataclass(frozen=True)
class InLayer(Selector):
    """``sink@3``: the tokens of a set that differs by layer, as it is in one of them."""

    inner: Selector
    layer: Whole

    def __post_init__(self) -> None:
        check_parts(self.inner)
        object.__setattr__(self, "layer", whole_number(self, self.layer))

    def __str__(self) -> str:
        # ~ binds more closely than @, and @ than everything else.
        return f"{_group(self.inner, (And, Or, InLayer))}@{self.layer}"

    def parts(self) -> tuple[Selector, ...]:
        """The set."""
        return (self.inner,)

    def differs_by_layer(self, batch: Batch) -> bool:
        """No: the layer is said."""
        return False

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """The tokens in its own layer, whichever is meant around it."""
        return self.inner.select(batch, self.layer)


@dataclass(frozen=True)
class Random(Selector):
    """``random(like=A, within=B, seed=0)``: in each sample as many tokens of B as A has.

    Drawn without replacement from its own generator, so the draw depends on the seed, the
    sample's content and the sizes only: a matched control that can be repeated, in any batch.
    """

    like: Selector
    within: Selector = Name("visual")
    seed: Whole = 0

    def __post_init__(self) -> None:
        check_parts(self.like, self.within)
        object.__setattr__(self, "seed", whole_number(self, self.seed))

    def parts(self) -> tuple[Selector, ...]:
        """Like which, and within which."""
        return (self.like, self.within)

    def __str__(self) -> str:
        return f"random(like={self.like}, within={self.within}, seed={self.seed})"

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """One draw per sample; InputError where ``within`` has fewer tokens than ``like``."""
        like, within = (part.select(batch, layer).prompt for part in self.parts())
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
        check_parts(self.left, self.right)

    def parts(self) -> tuple[Selector, ...]:
        """Both."""
        return (self.left, self.right)

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """Both selections, joined."""
        one, other = (part.select(batch, layer) for part in self.parts())
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
        check_parts(self.inner)

    def __str__(self) -> str:
        return f"~{_group(self.inner, (And, Or, InLayer))}"

    def parts(self) -> tuple[Selector, ...]:
        """What is left out."""
        return (self.inner,)

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """The complement among the tokens that are not padding."""
        inner = self.inner.select(batch, layer)
        return Selection(batch.real & ~inner.prompt, ~inner.generated)


def whole_number(selector: Selector, number: object, *, negative: bool = False) -> int:
    """A number that counts something, numpy's included; below 0 only where that has a meaning."""
    whole = isinstance(number, Integral) and not isinstance(number, bool)
    if not whole or (int(number) < 0 and not negative):  # type: ignore[call-overload]
        least = "" if negative else ", 0 or larger,"
        raise InputError(f"{selector}: a whole number{least} is needed, not {number!r}")
    return int(number)  # type: ignore[call-overload, no-any-return]


def check_parts(*parts: object) -> None:
    """Refuse what is no selector."""
    for part in parts:
        if not isinstance(part, Selector):
            raise InputError(f"{part!r} is no selector: write Name('visual') or parse_selector(…)")


def _group(selector: Selector, looser: type[Selector] | tuple[type[Selector], ...]) -> str:
    return f"({selector})" if isinstance(selector, looser) else str(selector)


def words_of(batch: Batch, selector: Selector) -> PromptWords:
    """Which token is which part of the prompts' text; refused where there is no text."""
    if batch.words is None:
        raise InputError(
            f"{selector}: this batch was made from tensors, without the prompts' text: encode the "
            "prompts, or say which tokens are meant with batch.with_tokens(name=mask)"
        )
    return batch.words


def visual_selection(batch: Batch, chosen: NDArray[np.bool_]) -> Selection:
    """Some of a batch's visual tokens, ``[visual token]``, as a selection."""
    mask = np.zeros((len(batch), batch.length), dtype=bool)
    mask[batch.visual.sample[chosen], batch.visual.position[chosen]] = True
    return Selection(mask, np.zeros(len(batch), dtype=bool))
