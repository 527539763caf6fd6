"""Operations that write states of other tokens, or of a donor's; sources are matched in order.

A token that has no counterpart must not get the state of its neighbour: tokens are matched in order
within their sample, and numbers that differ are refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.runs.run import Site as Capture
from ...lens.selectors.selector_types import Selection, Selector
from .donor import Places
from .needs import Need, StatesOf
from .operation import TokenOperation, Tokens
from .phrases import Phrases


def _donor_name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError(f"states {text!r}: the name of a donor is one word, as in given(word=…)")
    return text


DonorName = Annotated[str, AfterValidator(_donor_name)]


class Borrower(TokenOperation, ABC):
    """An operation on tokens whose states may come from other tokens, and from a donor.

    Attributes:
        from_tokens: Which tokens the states come from, in the selector language.
        states: Name of the donor they come from, bound by :meth:`Plan.given`; this batch if None.
    """

    from_tokens: Tokens | None = None
    states: DonorName | None = None

    @property
    def sources(self) -> Selector:
        """Which tokens the states come from, the default filled in."""
        chosen: Selector = self.tokens if self.from_tokens is None else self.from_tokens
        return chosen

    @abstractmethod
    def lent(self, n_layers: int) -> tuple[tuple[Capture, int], ...]:
        """What a donor has to lend: what is captured, and in which layers."""

    def needs(self) -> tuple[Need, ...]:
        """The donor's states."""
        if self.states is None:
            return ()
        return (StatesOf(self.lent, self.sources, self.states, self.lending_layer),)

    @property
    def lending_layer(self) -> int | None:
        """The one layer in which the sources are chosen, where sets differ by layer."""
        return self.choosing_layer

    def source_mask(self, batch: Batch) -> NDArray[np.bool_]:
        """The prompt tokens of a batch that the states come from, ``[sample, token]``."""
        return self.sources.select(batch, self.lending_layer).prompt

    def selections(self, batch: Batch) -> dict[str, Selection]:
        """Per role the tokens of this batch that are meant; those of a donor are not in it."""
        found = super().selections(batch)
        if self.states is not None:
            found.pop("from_tokens", None)
        return found

    def told_sources(self, phrases: Phrases) -> str:
        """Where the states come from, in words."""
        if self.states is None:
            return phrases.tokens(self.sources)
        return f"the tokens {str(self.sources)!r} of the donor {self.states!r}"

    def matched(
        self,
        wanted: NDArray[np.bool_],
        sources: NDArray[np.bool_],
        whose: str = "this batch",
        *,
        one_for_all: bool = True,
    ) -> Places:
        """A source for every wanted token: in order within the sample, or one for all if allowed.

        Wanted are ``[sample, token]``, sources ``[sample or 1, token]``; returns samples and
        positions of the sources in the order of ``wanted``. ``whose`` is what errors call the
        source.
        """
        if len(sources) not in (1, len(wanted)):
            raise InputError(
                f"{self!r}: {whose} has {len(sources)} samples and the batch {len(wanted)}; "
                "equally many are matched in order, and one is used for all"
            )
        rows, columns = [], []
        for sample, mine in enumerate(wanted):
            source = sample if len(sources) > 1 else 0
            number, found = int(mine.sum()), np.flatnonzero(sources[source])
            if not number:
                continue
            if len(found) != number and not (one_for_all and len(found) == 1):
                raise InputError(
                    f"{self!r}: {number} tokens of sample {sample} are to get states of "
                    f"{len(found)} tokens ({str(self.sources)!r} in sample {source} of {whose}); "
                    "equally many are matched in order" + ", and one is used for all" * one_for_all
                )
            columns.append(np.resize(found, number))
            rows.append(np.full(number, source))
        return np.concatenate(rows), np.concatenate(columns)
