"""The rows of a matrix nearest to a state in direction.

A row of zeros has no direction: its cosine is 0/0, and NaN wins every comparison. Such rows rank
last. Rows that are not to be listed never are, however many are asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError, NotFinite
from ..runs.finite import all_finite
from .top_k import WORDS_AT_ONCE, TopK, products

# Ranks below every cosine and above a row that is not listed (minus infinity).
LAST = torch.finfo(torch.float32).min


class NearestRows:
    """Cosine search, in float32, over a matrix that is taken a block at a time.

    Args:
        block: Rows of the matrix, ``[row, d]``, of any float type.
        count: Number of rows.
        listed: Rows that may be found; all when None.

    Raises:
        NotFinite: A row is NaN or infinite, and would be the nearest of all.
    """

    def __init__(
        self,
        block: Callable[[slice], Tensor],
        count: int,
        listed: Bool[Tensor, " row"] | None = None,
    ) -> None:
        self._block, self._count = block, count
        spans = (slice(i, min(i + WORDS_AT_ONCE, count)) for i in range(0, count, WORDS_AT_ONCE))
        norms = torch.cat([block(span).float().norm(dim=1) for span in spans])
        if not all_finite([norms]):
            row = int((~norms.isfinite()).nonzero()[0])
            raise NotFinite(f"row {row} of the {count} that states are compared with is not finite")
        self._inverse_norms = torch.where(norms > 0, 1 / norms, 0.0)
        self._last = torch.nonzero(norms == 0)[:, 0]
        unlisted = torch.zeros(count, dtype=torch.bool) if listed is None else ~listed
        self._unlisted = torch.nonzero(unlisted.to(norms.device))[:, 0]
        self.device = norms.device

    def top_k(
        self, states: Float[Tensor, "state d"], k: int
    ) -> tuple[Int[Tensor, "state k"], Float[Tensor, "state k"]]:
        """The k rows of largest cosine per state, best first, and the cosines.

        The cosine is 0 where the state is all zero, minus infinity where the row is.
        """
        unit = torch.nn.functional.normalize(states.float(), dim=1, eps=1e-30)
        found = TopK(len(states), k, states.device)
        for rows, scores in products(unit, self._block, self._count):
            scores.mul_(self._inverse_norms[rows].to(scores.device))
            set_columns(scores, rows, self._last, LAST)
            set_columns(scores, rows, self._unlisted, -torch.inf)
            found.update(scores, rows.start)
        return found.ids, found.scores.masked_fill_(found.scores == LAST, -torch.inf)


def set_columns(
    scores: Float[Tensor, "state column"],
    columns: slice,
    where: Int[Tensor, " chosen"],
    value: float,
) -> None:
    """Set the scores of those of the ``columns`` that are among ``where``."""
    inside = where[(where >= columns.start) & (where < columns.stop)]
    if len(inside):
        scores[:, (inside - columns.start).to(scores.device)] = value


def refuse_zeros(states: Float[Tensor, "state d"]) -> None:
    """Refuse states that have no direction.

    Raises:
        InputError: A state of zeros.
    """
    if not bool(states.any(1).all()):
        raise InputError("a state of zeros only has no direction, and so no nearest word")
