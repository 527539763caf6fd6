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
    """One thing that is read or changed.

    Attributes:
        site: Where.
        when: At tokens of the prompt, or at those generated behind it.
        by: The operation on whose behalf, for messages.
        slot: Under which name states are left for another step, or found.
        reads: Whether it only reads.
        overwrites: Whether nothing is left of what was there.
        idempotent: Whether doing it twice is doing it once, as both say.
        hides: Whether it keeps queries from seeing keys.
    """

    reads: ClassVar[bool] = False
    overwrites: ClassVar[bool] = False
    idempotent: ClassVar[bool] = False
    hides: ClassVar[bool] = False

    site: Site
    when: When
    by: str = ""
    slot: str | None = field(default=None, metadata=SLOT)

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

    def looks_at(self) -> Mask | None:
        """Other tokens on whose states it depends, ``[sample, token]``."""
        return None

    def recomputed(self, visible: Mask | None) -> int:
        """Queries of each sample whose attention is computed a second time.

        Args:
            visible: Which query can see which key, ``[sample, query, key]``; None for causal.
        """
        return 0


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStep(Step):
    """A step on the states of some tokens.

    Attributes:
        rows: Sample of each token, ``[selected]``.
        columns: Its position, ``[selected]``; None while decoding, where there is one token.
    """

    rows: Tensor = field(metadata=ROW)
    columns: Tensor | None = field(default=None, metadata=TOKEN)

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

    @property
    def merges(self) -> bool:
        """In any rows alike."""
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class Read(TokenStep):
    """Leave states in a slot."""

    reads = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Write(TokenStep):
    """Overwrite states with those of a slot, or with values brought along.

    Attributes:
        values: What to write, ``[selected or 1, d]``, or ``[group, d]``; None to take the slot's.
        from_group: Group of every state in the slot, of which the means are written.
        group: Group of every selected token.
        ratio: Factor of what is written.
        norm: How what is written gets the norms of ``others``: one factor per sample
            (``rescaled``), or each state (``matched``).
        others: Tokens whose median norm that is, ``[sample, token]``.
    """

    overwrites = True

    values: Tensor | None = field(default=None, metadata=TOKEN)
    from_group: Tensor | None = field(default=None, metadata=TOKEN)
    group: Tensor | None = field(default=None, metadata=TOKEN)
    ratio: float | None = None
    norm: str | None = None
    others: Tensor | None = field(default=None, metadata=SAMPLE)

    def looks_at(self) -> Mask | None:
        """The tokens whose norms are taken."""
        return None if self.others is None else self.others.numpy()


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise(TokenStep):
    """Replace states by noise of their own norms.

    Attributes:
        seeds: One for each token, alike for those that are drawn together, ``[selected]``.
        stride: Between the seeds of decoding steps.
    """

    seeds: Tensor = field(metadata=TOKEN)
    stride: int


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
    """Scale states by a factor, or to the median norms of the states in a slot.

    Attributes:
        factor: The same for all; None for norms.
        from_group: Group of every state in the slot.
        group: Group of every selected token, whose median norm it gets.
    """

    factor: float | None = None
    from_group: Tensor | None = field(default=None, metadata=TOKEN)
    group: Tensor | None = field(default=None, metadata=TOKEN)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairStep(Step):
    """A step that keeps queries from seeing keys.

    Attributes:
        queries: Prompt tokens that cannot see, ``[sample, token]``.
        later_queries: Whether tokens behind the prompt cannot either, ``[sample]``.
        keys: Prompt tokens that cannot be seen.
        later_keys: Whether tokens behind the prompt cannot be either.
        behind: Tokens behind the prompt in the same pass.
        skippable: Whether the pairs need not be computed.
    """

    hides = True
    skippable: ClassVar[bool] = False

    queries: Tensor = field(metadata=SAMPLE)
    later_queries: Tensor = field(metadata=SAMPLE)
    keys: Tensor = field(metadata=SAMPLE)
    later_keys: Tensor = field(metadata=SAMPLE)
    behind: int = 0

    @property
    def conceals(self) -> bool:
        """Whether its queries have no use for its keys."""
        return True

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

    skippable = True

    @property
    def merges(self) -> bool:
        """In any rows alike."""
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroWeights(PairStep):
    """Take keys out of what queries gather, behind the softmax.

    Attributes:
        collapse: Whether the weights taken go to the first of the keys.
        takes: Whether it goes on from the weights that an earlier step on this call left.
        leaves: Whether it leaves its weights to a later one.
    """

    collapse: bool = False
    takes: bool = False
    leaves: bool = False

    @property
    def merges(self) -> bool:
        """Unless it is bound to a neighbour."""
        return not (self.takes or self.leaves)

    @property
    def conceals(self) -> bool:
        """Where the first key does not get it all."""
        return not self.collapse

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
class Drop(Step):
    """Drop tokens from the sequence: before the decoder, or before a layer.

    Attributes:
        length: Of the prompt.
        behind: Tokens behind it in the same pass.
        take: Positions that are kept, padded on the left to the longest sample, ``[sample, kept]``.
        kept: Which of these are no padding.
        renumber: Whether positions are counted anew.
    """

    length: int
    behind: int
    take: Tensor
    kept: Tensor
    renumber: bool = False

    @property
    def length_after(self) -> int:
        """Tokens of the longest sample."""
        return int(self.take.shape[1])

    def tokens(self, samples: int, length: int) -> None:
        """The sequence as a whole."""
        return
