"""What can be done at a site: each kind of step says here, once, how it behaves.

A field of a step says along which axis it goes with the batch, so that steps of several conditions
can be stacked without knowing their kinds: ``ROW``, ``TOKEN``, ``SAMPLE`` or ``SLOT``; anything
else has to be plain. In the stacked batch every condition has rows of its own, and a step that kept
the rows of its single run would change what another condition returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .site import Site

Mask = NDArray[np.bool_]
When = Literal["prefill", "decode"]

# An index of a row of the batch.
ROW = {"along": "row"}
# Entries that belong to selected tokens, in whichever row these are.
TOKEN = {"along": "token"}
# One row per sample.
SAMPLE = {"along": "sample"}
# The name under which one step leaves states for another.
SLOT = {"along": "slot"}


def wide(prompt: Mask, later: Mask | None = None) -> Mask:
    """Tokens ``[sample, token + 1]``, where the last column stands for those generated later."""
    column = np.zeros(len(prompt), bool) if later is None else later
    return np.concatenate([prompt, column[:, None]], axis=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step(ABC):
    """One thing that is read or changed."""

    reads: ClassVar[bool] = False  # whether it only reads
    overwrites: ClassVar[bool] = False  # whether nothing is left of what was there
    idempotent: ClassVar[bool] = False  # whether doing it twice is doing it once, as both say
    hides: ClassVar[bool] = False  # whether it keeps queries from seeing keys

    site: Site  # where
    when: When  # at tokens of the prompt, or at those generated behind it
    by: str = ""  # the operation on whose behalf, for messages
    slot: str | None = field(default=None, metadata=SLOT)  # name of states left, or of those found
    # Name under which another step leaves the tokens that take the place of this one's
    chosen: str | None = field(default=None, metadata=SLOT)

    @property
    def merges(self) -> bool:
        """Whether one step can do in some rows what it does in others."""
        return False

    @property
    def length_after(self) -> int | None:
        """Length of the prompt's sequence from here on, if it changes; others share no pass."""
        return None

    @abstractmethod
    def tokens(self, samples: int, length: int) -> Mask | None:
        """Tokens read or changed, of a mask its queries, ``[sample, token + 1]``; None for all."""

    def positions(self) -> Tensor | None:
        """Sequence positions read or changed in any sample, in order; None for all."""
        return None

    def looks_at(self) -> Mask | None:
        """Other tokens on whose states it depends, ``[sample, token]``."""
        return None

    def recomputed(self, visible: Mask | None) -> int:
        """Queries of each sample whose attention is computed a second time.

        ``visible`` says which query can see which key, ``[sample, query, key]``; None for causal.
        """
        return 0


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStep(Step):
    """A step on the states of some tokens."""

    rows: Tensor = field(metadata=ROW)  # sample of each token, ``[selected]``
    # Its position, ``[selected]``; None while decoding, where there is one token
    columns: Tensor | None = field(default=None, metadata=TOKEN)

    def positions(self) -> Tensor | None:
        """The tokens' positions, those behind the prompt in the same pass among them."""
        return None if self.columns is None else torch.unique(self.columns)

    def tokens(self, samples: int, length: int) -> Mask:
        """The tokens; those behind the prompt are the last column."""
        found = np.zeros((samples, length + 1), bool)
        columns: Any = length if self.columns is None else self.columns.numpy()
        found[self.rows.numpy(), np.minimum(columns, length)] = True
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Zero(TokenStep):
    """Make states zero."""

    overwrites = True
    idempotent = True
    merges = True  # in any rows alike


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroHeads(TokenStep):
    """Make what some heads gathered zero, before it is projected back to the stream."""

    merges = True  # in any rows alike

    heads: tuple[int, ...]
    of_heads: int  # how many the layer has


@dataclass(frozen=True, kw_only=True, eq=False)
class Read(TokenStep):
    """Leave states in a slot."""

    reads = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Choose(Step):
    """Leave the tokens with the best scores in a slot, for steps that are to act on them.

    Attributes:
        within: Among which tokens, ``[sample, token]``.
        counts: How many of each sample, ``[sample]``.
        guess: The tokens that the other steps were made for, as many, ``[sample, token]``.
        sign: 1 where the highest scores are the best, -1 where the lowest are.
        queries: Whose attention is the score, ``[sample, token]``; None for a score of states.
        direction: The cosine with it is the score, ``[d]``.
        function: Its answer is the score.
    """

    reads = True

    within: Tensor
    counts: Tensor
    guess: Tensor
    sign: int
    queries: Tensor | None = None
    direction: Tensor | None = None
    function: Any = None

    def tokens(self, samples: int, length: int) -> None:
        """None that are followed: what it reads is read as it is."""
        return

    def recomputed(self, visible: Mask | None) -> int:
        """The queries whose weights are computed."""
        return 0 if self.queries is None else int(self.queries.any(0).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Write(TokenStep):
    """Overwrite states with those of a slot, or with values brought along."""

    overwrites = True

    # What to write, ``[selected or 1, d]``, or ``[group, d]``; None to take the slot's
    values: Tensor | None = field(default=None, metadata=TOKEN)
    # Group of every state in the slot, of which the means are written
    from_group: Tensor | None = field(default=None, metadata=TOKEN)
    group: Tensor | None = field(default=None, metadata=TOKEN)  # group of every selected token
    ratio: float | None = None  # factor of what is written
    # How what is written gets the norms of ``others``: one factor per sample (``rescaled``), or
    # each state (``matched``)
    norm: str | None = None
    # Tokens whose median norm that is, ``[sample, token]``
    others: Tensor | None = field(default=None, metadata=SAMPLE)

    def looks_at(self) -> Mask | None:
        """The tokens whose norms are taken."""
        return None if self.others is None else self.others.numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise(TokenStep):
    """Replace states by noise of their own norms."""

    seeds: Tensor = field(metadata=TOKEN)  # alike for tokens drawn together, ``[selected]``
    stride: int  # between the seeds of decoding steps


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(TokenStep):
    """Add a vector to states.

    Attributes:
        values: The vector, ``[1, d]``.
        factor: Of the vector.
    """

    values: Tensor = field(metadata=TOKEN)
    factor: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(TokenStep):
    """Scale states by a factor, or to the median norms of the states in a slot."""

    factor: float | None = None  # the same for all; None for norms
    # Group of every state in the slot
    from_group: Tensor | None = field(default=None, metadata=TOKEN)
    group: Tensor | None = field(default=None, metadata=TOKEN)  # whose median norm each token gets


@dataclass(frozen=True, kw_only=True, eq=False)
class PairStep(Step):
    """A step on what queries see of keys: it keeps them from it, or changes how much it is."""

    hides = True

    queries: Tensor = field(metadata=SAMPLE)  # prompt tokens that cannot see, ``[sample, token]``
    later_queries: Tensor = field(metadata=SAMPLE)  # whether those behind it cannot, ``[sample]``
    keys: Tensor = field(metadata=SAMPLE)  # prompt tokens that cannot be seen
    later_keys: Tensor = field(metadata=SAMPLE)  # whether tokens behind the prompt cannot be either
    behind: int = 0  # tokens behind the prompt in the same pass
    heads: tuple[int, ...] | None = None  # in which heads, all if None
    of_heads: int = 0  # how many the layer has, where some are named

    @property
    def conceals(self) -> bool:
        """Whether its queries have no use for its keys."""
        return self.heads is None

    @property
    def skippable(self) -> bool:
        """Whether the pairs need not be computed."""
        return False

    def positions(self) -> Tensor:
        """The queries' positions, those behind the prompt in the same pass among them."""
        later = self.later_queries.any().expand(self.behind)
        return torch.cat([self.queries.any(0), later]).nonzero()[:, 0]

    def tokens(self, samples: int, length: int) -> Mask:
        """The queries, where the step acts."""
        prompt = self.queries.numpy()
        return wide(prompt & (self.when == "prefill"), self.later_queries.numpy())

    def hidden(self) -> Mask:
        """The keys, ``[sample, token + 1]``."""
        return wide(self.keys.numpy(), self.later_keys.numpy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Hide(PairStep):
    """Hide keys from queries in the mask, before the softmax."""

    merges = True  # in any rows alike

    @property
    def skippable(self) -> bool:
        """Unless other heads compute them."""
        return self.heads is None


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightsStep(PairStep):
    """Change the weights that queries give to keys, behind the softmax."""

    takes: bool = False  # whether it goes on from the weights that an earlier step left
    leaves: bool = False  # whether it leaves its weights to a later one

    @property
    def merges(self) -> bool:
        """Unless it is bound to a neighbour."""
        return not (self.takes or self.leaves)

    def recomputed(self, visible: Mask | None) -> int:
        """Positions that lose a key in some sample; all of them where weights are handed on."""
        samples, length = self.keys.shape
        if not self.merges:
            return int(length)
        keys = self.keys.numpy()
        if visible is None:
            loses = np.logical_or.accumulate(keys, axis=1)
        else:
            loses = (visible & keys[:, None]).any(2)
        return int((self.tokens(samples, length)[:, :-1] & loses).any(0).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroWeights(WeightsStep):
    """Take keys out of what queries gather."""

    collapse: bool = False  # whether the weights taken go to the first of the keys

    @property
    def conceals(self) -> bool:
        """Where the first key does not get it all, in every head."""
        return self.heads is None and not self.collapse


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleWeights(WeightsStep):
    """Scale what queries give to keys."""

    factor: float
    # Tokens of the prompt that get what is freed, ``[sample, token]``, and whether those behind it
    # do, ``[sample]``; None for nobody
    takers: Tensor | None = field(default=None, metadata=SAMPLE)
    later_takers: Tensor | None = field(default=None, metadata=SAMPLE)

    @property
    def conceals(self) -> bool:
        """Where nothing is left of it, in any head."""
        return self.heads is None and self.factor == 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Drop(Step):
    """Drop tokens from the sequence: before the decoder, or before a layer."""

    length: int  # of the prompt
    behind: int  # tokens behind it in the same pass
    take: Tensor  # positions that are kept, padded on the left, ``[sample, kept]``
    kept: Tensor  # which of these are no padding
    renumber: bool = False  # whether positions are counted anew

    @property
    def length_after(self) -> int:
        """Tokens of the longest sample."""
        return int(self.take.shape[1])

    def tokens(self, samples: int, length: int) -> None:
        """The sequence as a whole."""
        return
