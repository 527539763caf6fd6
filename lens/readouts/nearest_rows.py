"""The rows of a matrix nearest to a state in direction.

A row of zeros has no direction: its cosine is 0/0, and NaN wins every comparison. Such rows rank
last. Rows that are not to be listed never are, however many are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError, NotFinite
from .top_k import TopK, products

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
        unlisted = torch.zeros(count, dtype=torch.bool) if listed is None else ~listed
        self._unlisted = torch.nonzero(unlisted)[:, 0]

    def top_k(
        self, states: Float[Tensor, "state d"], k: int
    ) -> tuple[Int[Tensor, "state k"], Float[Tensor, "state k"]]:
        """The k rows of largest cosine per state, best first, and the cosines.

        The cosine is 0 where the state is all zero, minus infinity where the row is.
        """
        unit = torch.nn.functional.normalize(states.float(), dim=1, eps=1e-30)
        found = TopK(len(states), k, states.device)
        for rows, scores, part in products(unit, self._block, self._count):
            # Of the rows that were multiplied just now: norms kept from before would be of others.
            norms = part.norm(dim=1)
            least, most = (edge.item() for edge in torch.aminmax(norms))
            if not (isfinite(least) and isfinite(most)):
                row = rows.start + int((~norms.isfinite()).nonzero()[0])
                raise NotFinite(
                    f"row {row} of the {self._count} that states are compared with is not finite"
                )
            if least > 0:
                scores.mul_(1 / norms)
            else:
                scores.mul_(torch.where(norms > 0, 1 / norms, 0.0))
                set_columns(scores, rows, torch.nonzero(norms == 0)[:, 0] + rows.start, LAST)
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
    if not len(where):
        return
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
