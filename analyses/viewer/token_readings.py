"""What the viewer knows of the tokens: words by condition, lens and layer, and numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from ...lens.errors import InputError
from ...lens.readouts import ContextReadout, Readout


@runtime_checkable
class WordsInTexts(Protocol):
    """Words and where in which text they stand, as a `TextBank` has them."""

    @property
    def texts(self) -> Sequence[str]:
        """The texts."""

    @property
    def text(self) -> Int[np.ndarray, " word"]:
        """Which one each word stands in, ``[word]``."""

    @property
    def span(self) -> Int[np.ndarray, "word 2"]:
        """First and one past the last character there, ``[word, 2]``; -1 if unknown."""


@dataclass(frozen=True, eq=False)
class Sentences:
    """Where the words of a reading stand.

    Attributes:
        bank: The words in their sentences.
        entries: Words of the bank, ``[token, k]``.
        layers: Layer that each word's state was taken at, ``[token, k]``.
    """

    bank: WordsInTexts
    entries: Int[np.ndarray, "token k"]
    layers: Int[np.ndarray, "token k"]


@dataclass(frozen=True, eq=False)
class Reading:
    """The words of every token at one layer, by one lens, under one condition.

    Attributes:
        condition: Such as ``clean``.
        lens: What read them.
        layer: Of the residual stream that was read.
        words: Best first, ``[token, k]``; empty for a token that was not read.
        scores: What the lens ranks them by, ``[token, k]``.
        ranked_by: What that is called.
        sentences: Where the words stand, for a lens that reads words in sentences.
    """

    condition: str
    lens: str
    layer: int
    words: NDArray[np.str_]
    scores: Float[np.ndarray, "token k"]
    ranked_by: str
    sentences: Sentences | None = None


@dataclass(frozen=True, eq=False)
class TokenNumbers:
    """One number per token and layer, under one condition.

    Attributes:
        name: Such as ``norm``.
        condition: Under which it was measured; None for all.
        layers: The layers of its rows; a single None for a number that belongs to no layer.
        values: ``[layer, token]``; NaN where there is none.
    """

    name: str
    condition: str | None
    layers: Sequence[int | None]
    values: Float[np.ndarray, "layer token"]


def reading_of(
    readout: Readout,
    condition: str,
    lens: str,
    layer: int,
    ranked_by: str,
    read: Bool[torch.Tensor, " token"] | None = None,
) -> Reading:
    """A readout of all tokens as the viewer shows it.

    Args:
        readout: Of states ``[token]``, those that were read.
        condition: Such as ``clean``.
        lens: What read them.
        layer: Of the residual stream.
        ranked_by: What its scores are called.
        read: Which of all tokens it has, ``[token]``; all when None.
    """

    def spread(values: NDArray[Any], missing: object) -> NDArray[Any]:
        if read is None:
            return values
        out = np.full((len(read), values.shape[1]), missing, dtype=values.dtype)
        out[read.cpu().numpy()] = values
        return out

    sentences = None
    if isinstance(readout, ContextReadout):
        entries, layers = readout.entries.cpu().numpy(), readout.layers.cpu().numpy()
        sentences = Sentences(readout.bank, spread(entries, -1), spread(layers, -1))
    scores = readout.scores.float().cpu().numpy()
    return Reading(
        condition,
        lens,
        layer,
        spread(readout.words, ""),
        spread(scores, np.nan),
        ranked_by,
        sentences,
    )


def part_of(readout: Readout, rows: slice | int) -> Readout:
    """Some of a readout's states, by its first axis."""
    own = ("ids", "scores", "entries", "layers")
    return replace(readout, **{n: getattr(readout, n)[rows] for n in own if hasattr(readout, n)})


def measures_of(
    given: Mapping[str, object], tokens: int, condition: str | None = None
) -> list[TokenNumbers]:
    """Numbers that a caller has for the tokens, such as the attention that each receives.

    Raises:
        InputError: Of another shape than ``[token]`` or ``[layer, token]``.
    """
    found = []
    for name, values in given.items():
        array = values.detach().float().cpu() if isinstance(values, torch.Tensor) else values
        try:
            numbers = np.asarray(array, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"measures[{name!r}] holds no numbers") from None
        if numbers.ndim not in (1, 2) or numbers.shape[-1] != tokens:
            raise InputError(
                f"measures[{name!r}] of shape {numbers.shape}: give one number for each of the "
                f"{tokens} visual tokens, [token] or [layer, token]"
            )
        layers: Sequence[int | None] = [None] if numbers.ndim == 1 else range(len(numbers))
        found.append(TokenNumbers(name, condition, layers, np.atleast_2d(numbers)))
    return found
