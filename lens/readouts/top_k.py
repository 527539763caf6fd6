"""The k best columns per row of scores that come a block at a time.

Next to a matrix product, careless reading is not free: fresh memory for every block and a sort of
every score add a third to the time of the product. So the blocks share one buffer, and only columns
that can still be among the best are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..runs.finite import all_finite

# Rows and columns taken at a time: one block of scores is 64 MB of float32.
STATES_AT_ONCE = 4096
WORDS_AT_ONCE = 4096

# Columns that share one maximum: only groups whose maximum is among the k largest are searched.
_GROUP = 64


class TopK:
    """The running k best of every row.

    Args:
        rows: Number of rows.
        k: How many to keep.
        device: Where the scores are.

    Attributes:
        scores: The best so far in falling order, ``[row, min(k, columns seen)]``.
        ids: Their columns.
    """

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self._k = k
        self.scores: Float[Tensor, "row best"] = torch.empty(rows, 0, device=device)
        self.ids: Int[Tensor, "row best"] = torch.empty(rows, 0, dtype=torch.long, device=device)

    def update(self, scores: Float[Tensor, "row column"], first: int) -> None:
        """Take in the scores of the columns from ``first`` on."""
        width = scores.shape[1]
        groups = width // _GROUP
        if width % _GROUP or groups <= self._k:
            self._merge(slice(None), *scores.topk(min(self._k, width), dim=1), first)
            return
        grouped = rearrange(scores, "row (group column) -> row group column", column=_GROUP)
        peaks = grouped.amax(2)
        if self.scores.shape[1] < self._k:
            rows = torch.arange(len(scores), device=scores.device)
        else:
            rows = (peaks.amax(1) > self.scores[:, -1]).nonzero()[:, 0]
        # The k largest scores lie in the k groups of the largest maxima.
        chosen = peaks[rows].topk(self._k, dim=1, sorted=False).indices
        top, where = grouped[rows[:, None], chosen].flatten(1).topk(self._k, dim=1)
        column = chosen.gather(1, where // _GROUP) * _GROUP + where % _GROUP
        self._merge(rows, top, column, first)

    def _merge(self, rows: Tensor | slice, top: Tensor, column: Tensor, first: int) -> None:
        if not self.scores.shape[1]:  # the first block, sorted already
            self.scores, self.ids = top, column + first
            return
        both = torch.cat([self.scores[rows], top], dim=1)
        ids = torch.cat([self.ids[rows], column + first], dim=1)
        best, order = both.topk(min(self._k, both.shape[1]), dim=1)
        ids = ids.gather(1, order)
        if best.shape[1] == self.scores.shape[1]:
            self.scores[rows], self.ids[rows] = best, ids
        else:
            self.scores, self.ids = best, ids


def products(
    rows: Float[Tensor, "row d"], block: Callable[[slice], Tensor], columns: int
) -> Iterator[tuple[slice, Float[Tensor, "row column"], Float[Tensor, "column d"]]]:
    """``rows @ matrix.T`` in float32, some columns at a time, in one buffer that is reused.

    Args:
        rows: float32.
        block: Rows of the matrix, ``[column, d]``, of any float type and on any device.
        columns: Rows of the matrix.

    Yields:
        Which columns, their scores, which may be changed in place, and their rows of the matrix,
        which may not; both are gone with the next.
    """
    n_rows, width = rows.shape
    at_once = min(WORDS_AT_ONCE, columns)
    scores = rows.new_empty(n_rows * at_once)
    converted: Tensor | None = None
    for start in range(0, columns, at_once):
        words = slice(start, min(start + at_once, columns))
        part = block(words)
        if part.dtype != rows.dtype or part.device != rows.device:
            if converted is None:
                converted = rows.new_empty(at_once, width)
            part = converted[: len(part)].copy_(part)
        into = scores[: n_rows * len(part)].view(n_rows, len(part))
        yield words, torch.mm(rows, part.T, out=into), part


@torch.no_grad()
def read_in_blocks(
    states: Float[Tensor, "*state d"],
    width: int,
    k: int,
    choices: int,
    top_k: Callable[[Tensor, int], tuple[Tensor, Tensor]],
) -> tuple[Int[Tensor, "*state k"], Float[Tensor, "*state k"]]:
    """Check the states, read them some at a time, and restore their shape.

    Args:
        states: States of any shape.
        width: What their last dimension must be.
        k: How many entries to find.
        choices: How many entries there are.
        top_k: Reads ``[state, d]``; returns ids and scores, ``[state, k]``.

    Raises:
        InputError: States of another width or not finite, or k outside the choices.
    """
    if not isinstance(states, Tensor):
        raise InputError(
            f"a lens reads states, such as model.entry(batch), not {type(states).__name__}"
        )
    if states.ndim == 0 or states.shape[-1] != width:
        raise InputError(f"states {tuple(states.shape)}: the last dimension must be {width}")
    if not 1 <= k <= choices:
        raise InputError(f"k={k}: there are {choices} entries to choose from")
    parts = []
    for block in torch.split(rearrange(states.detach(), "... d -> (...) d"), STATES_AT_ONCE):
        if not all_finite([block]):
            raise InputError("the states hold NaN or infinite values, which have no nearest word")
        parts.append(top_k(block, k))
    ids, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    shape = (*states.shape[:-1], k)
    return ids.view(shape), scores.view(shape)
