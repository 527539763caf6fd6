"""Which visual tokens of an image are read: the one in whose cell a thing lies, and others."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ...lens.visual_tokens import VisualTokens
from .token_cells import token_of


@dataclass(frozen=True, eq=False)
class SampledTokens:
    """Some visual tokens of one image, the one of the cell first.

    Attributes:
        tokens: Their rows in the table of visual tokens.
        near: Which of them touch the cell.
        drawn: Which of them were drawn from all others, neighbours included.
    """

    tokens: Int[np.ndarray, " token"]
    near: Bool[np.ndarray, " token"]
    drawn: Bool[np.ndarray, " token"]

    @property
    def cell(self) -> int:
        """The row of the cell's token."""
        return int(self.tokens[0])


def sampled_tokens(
    visual: VisualTokens,
    sample: int,
    box: tuple[int, int, int, int],
    n_others: int,
    rng: np.random.Generator,
) -> SampledTokens:
    """The token of a cell, those beside it, and as many drawn from all others of its grid.

    Raises:
        InputError: The box is no cell of these tokens.
    """
    edges = np.array(box)
    cell, rest = token_of(visual, sample, edges)
    own = visual.box[rest]
    touch = np.minimum(own[:, 2:], edges[2:]) - np.maximum(own[:, :2], edges[:2])
    near = rest[(touch > -1).all(1)]
    drawn = rng.choice(rest, min(n_others, len(rest)), replace=False)
    tokens = np.concatenate([[cell], near, drawn])
    order = np.arange(len(tokens))
    return SampledTokens(tokens, (order > 0) & (order <= len(near)), order > len(near))
