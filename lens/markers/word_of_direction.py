"""Does a direction carry a word? Its nearest word, against what directions have by chance.

Word embeddings share a direction of their own: in a trained language model two random words had a
mean cosine of .44, and the mean of many a cosine of .9 to some word. So the mean direction of all
words is taken out first, and chance is what random directions reach that vary as words do.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..model import VisualLM
from ..readouts.embedding_rows import embedding_rows, listed
from ..readouts.nearest_rows import NearestRows
from ..readouts.top_k import WORDS_AT_ONCE

# Random directions, the largest of whose cosines is chance, and words their spread is taken from.
_DRAWS, _SAMPLED = 200, 4096


class WordOfDirection:
    """Cosines of directions to their nearest words, the words' mean direction taken out.

    Args:
        model: Whose words.
        seed: Of the random directions.

    Attributes:
        chance: The largest such cosine of 200 random directions with the words' own covariance.
    """

    def __init__(self, model: VisualLM, seed: int) -> None:
        embedding = model.hf.get_submodule(model.anatomy.embedding)
        count, self._rows = model.anatomy.vocab_size, embedding_rows(embedding)
        words = listed(model.tokenizer, count)
        draw = torch.Generator().manual_seed(seed)
        sampled = torch.zeros(count, dtype=torch.bool)
        order = torch.randperm(int(words.sum()), generator=draw)
        sampled[words.nonzero()[order[:_SAMPLED], 0]] = True
        total, kept = torch.zeros(model.anatomy.hidden_size), []
        for start in range(0, count, WORDS_AT_ONCE):
            span = slice(start, min(start + WORDS_AT_ONCE, count))
            unit = normalize(self._rows(span).float(), dim=1).cpu()
            total += unit[words[span]].sum(0)
            kept.append(unit[sampled[span]])
        self._mean = normalize(total, dim=0)
        self._nearest = NearestRows(lambda span: self._centred(self._rows(span)), count, words)
        spread = self._centred(torch.cat(kept))
        weights = torch.randn(_DRAWS, len(spread), generator=draw)
        self.chance = float(self(weights @ (spread - spread.mean(0))).max())

    def __call__(self, directions: Float[Tensor, "direction d"]) -> Float[Tensor, " direction"]:
        """The cosine of each to its nearest word."""
        rest = self._centred(directions).to(self._rows(slice(0, 1)).device)
        return self._nearest.top_k(rest, 1)[1][:, 0].cpu()

    def _centred(self, rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
        """Unit vectors less their part along the mean direction."""
        unit, mean = normalize(rows.float(), dim=1), self._mean.to(rows.device)
        return unit - (unit @ mean)[:, None] * mean
