"""EmbedLens: a state read as the nearest input embeddings.

The state is compared as it is with what the embedding returns: a norm layer, centring or scaling
before the comparison would change which word is nearest.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from ..model import VisualLM
from ..opening.placement import device_of
from ..runs.remote import need_weights
from ..torch_settings import default_torch
from .embedding_rows import Words, embedding_rows
from .lens import ReadsWithItsModel, register_lens
from .nearest_rows import NearestRows, refuse_zeros
from .readout import Readout
from .top_k import read_in_blocks


@register_lens
class EmbedLens(ReadsWithItsModel):
    r"""Nearest rows of the input embedding matrix by cosine, docs/method.md (a1).

    $\mathrm{TopK}_{i \in V}\; h^\top e_i / (\lVert h \rVert \lVert e_i \rVert)$ on the raw state:
    no norm layer, no centring; the whole vocabulary, special tokens included. Computed in
    float32. Embedding rows that are all zero have no direction and rank last; rows for which the
    tokenizer has no word (padding of the matrix) are left out.

    Args:
        model: Whose embedding and tokenizer.
    """

    ranked_by = "cosine"

    @default_torch()
    def __init__(self, model: VisualLM) -> None:
        self._tokenizer = model.tokenizer
        self._width = model.anatomy.hidden_size
        self._hf = need_weights(model.hf, "EmbedLens")
        self._embedding = model.anatomy.embedding
        self._words = Words(model.tokenizer)
        self._words.among(self._count())

    @default_torch()
    def read(self, states: Float[Tensor, "*state d"], k: int = 10) -> Readout:
        """The k nearest words of each state.

        Raises:
            InputError: States of another width, not finite or all zero, or k outside the
                vocabulary.
        """
        words = self._words.among(self._count())
        ids, scores = read_in_blocks(states, self._width, k, int(words.sum()), self._top_k)
        return Readout(ids, scores, self._tokenizer)

    def _top_k(
        self, states: Float[Tensor, "state d"], k: int
    ) -> tuple[Int[Tensor, "state k"], Float[Tensor, "state k"]]:
        refuse_zeros(states)
        # Whatever module is there now: it may have been replaced since the lens was made.
        embedding = self._hf.get_submodule(self._embedding)
        count = self._count()
        nearest = NearestRows(embedding_rows(embedding), count, self._words.among(count))
        return nearest.top_k(states.to(device_of(embedding)), k)

    def _count(self) -> int:
        return len(self._hf.get_submodule(self._embedding).weight)
