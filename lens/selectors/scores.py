"""Tokens by a score: those with the highest or the lowest in each sample, known only in a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..inputs.batch import Batch
from .selector_types import Name, Selection, Selector, Whole, check_parts, whole_number

# Takes states ``[token, d]``, returns one number for each, ``[token]``.
Function = Callable[[Tensor], Tensor]
VISUAL = Name("visual")


@dataclass(frozen=True)
class Norm:
    """``norm``: the Euclidean norm of the residual stream entering the layer."""

    def __str__(self) -> str:
        return "norm"


@dataclass(frozen=True)
class Cosine:
    """``cosine("red")``: the cosine of the residual stream entering the layer with a direction.

    Attributes:
        to: A word of the vocabulary, of whose input embedding it is the direction; or, in Python
            only, a vector ``[d]``.
    """

    to: str | Tensor

    def __post_init__(self) -> None:
        said = isinstance(self.to, str)
        if (said and not self.to) or not (said or isinstance(self.to, Tensor)):
            raise InputError(f"cosine(…): a word or a vector is needed, not {self.to!r}")
        if isinstance(self.to, Tensor) and (self.to.ndim != 1 or not self.to.isfinite().all()):
            raise InputError(
                f"cosine(…): a vector [d] of finite numbers, not {list(self.to.shape)}"
            )

    def __str__(self) -> str:
        return f'cosine("{self.to}")' if isinstance(self.to, str) else f"cosine(<{self.to.shape}>)"

    def __eq__(self, other: object) -> bool:
        """The same word, or the same tensor."""
        if not isinstance(other, Cosine):
            return NotImplemented
        words = isinstance(self.to, str) and isinstance(other.to, str)
        return self.to == other.to if words else self.to is other.to

    def __hash__(self) -> int:
        return hash(self.to) if isinstance(self.to, str) else id(self.to)


@dataclass(frozen=True)
class AttentionFrom:
    """``attention(last)``: the attention that a token receives from some queries in the layer.

    The mean over the heads, and over the queries of its sample that are meant.
    """

    queries: Selector

    def __post_init__(self) -> None:
        check_parts(self.queries)

    def __str__(self) -> str:
        return f"attention({self.queries})"


By = Norm | Cosine | AttentionFrom | Function


@dataclass(frozen=True)
class Scored(Selector):
    """Tokens with the best scores of each sample; each kind says which are best.

    Attributes:
        amount: How many of each sample: a number, or as a fraction a share of those ``within``,
            rounded to the nearest number (halves up).
        by: The score: :class:`Norm`, :class:`Cosine`, :class:`AttentionFrom`, or in Python only a
            function that takes the residual stream entering the layer, ``[token, d]``.
        layer: In which layer it is read.
        within: Among which tokens. Of equal scores the earlier token is taken.
    """

    word: ClassVar[str]
    sign: ClassVar[int]

    amount: Whole | float
    by: By
    layer: Whole
    within: Selector = VISUAL

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", whole_number(self, self.layer))
        object.__setattr__(self, "amount", _amount(self, self.amount))
        if not (isinstance(self.by, Norm | Cosine | AttentionFrom) or callable(self.by)):
            raise InputError(
                f"{self.word}(…): by={self.by!r} is no score: norm, cosine(…), attention(…), or in "
                "Python a function of states [token, d]"
            )
        check_parts(self.within)
        if any(isinstance(node, Scored) for part in self.parts() for node in part.nodes()):
            raise InputError(f"{self}: a score within a score is not known in one pass")

    def __str__(self) -> str:
        by = self.by
        own = isinstance(by, Norm | Cosine | AttentionFrom)
        told = str(by) if own else f"<{getattr(by, '__name__', 'function')}>"
        return f"{self.word}({self.amount!r}, by={told}, layer={self.layer}, within={self.within})"

    @property
    def has_text(self) -> bool:
        """Whether the score can be written down, which a function and a vector cannot."""
        by = self.by
        return isinstance(by, Norm | AttentionFrom) or (
            isinstance(by, Cosine) and isinstance(by.to, str)
        )

    def parts(self) -> tuple[Selector, ...]:
        """Within which, and the queries whose attention counts."""
        return (self.within, *((self.by.queries,) if isinstance(self.by, AttentionFrom) else ()))

    def differs_by_layer(self, batch: Batch) -> bool:
        """No: the layer is said."""
        return False

    def select(self, batch: Batch, layer: int | None = None) -> Selection:
        """What a pass over this batch has found."""
        found = batch.scored.get(self)
        if found is None:
            raise InputError(
                f"{self}: which tokens score so is known only in a run: give it to an operation of "
                "a plan, or as tokens= to run()"
            )
        return Selection(found, np.zeros(len(batch), dtype=bool))

    def counts(self, batch: Batch) -> NDArray[np.int64]:
        """How many tokens are chosen of each sample, ``[sample]``."""
        there: NDArray[np.int64] = self.within.select(batch, self.layer).prompt.sum(1)
        if isinstance(self.amount, float):
            shares: NDArray[np.int64] = np.floor(self.amount * there + 0.5).astype(np.int64)
            return shares
        if (there < self.amount).any():
            sample = int(np.flatnonzero(there < self.amount)[0])
            raise InputError(
                f"{self}: sample {sample} has {there[sample]} tokens of {self.within} only"
            )
        return np.full(len(batch), self.amount, dtype=np.int64)


def scored_in(selector: Selector) -> list[Scored]:
    """The selectors by score in a selector."""
    return [node for node in selector.nodes() if isinstance(node, Scored)]


class Top(Scored):
    """``top(0.5, by=attention(last), layer=1, within=visual)``: the tokens with the highest."""

    word, sign = "top", 1


class Bottom(Scored):
    """``bottom(8, by=norm, layer=3, within=visual)``: the tokens with the lowest scores."""

    word, sign = "bottom", -1


def _amount(selector: Scored, amount: Any) -> int | float:
    plain = amount.item() if isinstance(amount, np.generic) else amount
    if type(plain) is int and plain > 0:
        return plain
    if type(plain) is float and 0 < plain <= 1:
        return plain
    raise InputError(
        f"{selector.word}(…): how many is a number from 1 or a share between 0 and 1 (0.5), "
        f"not {amount!r}"
    )
