"""Reading hidden states in words: nearest input embeddings (EmbedLens) and the logit lens.

The vocabulary is walked in chunks and only the running top k is kept, so nothing of size
tokens x vocabulary ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from .errors import InputError, Unsupported
from .model import VisualLM

# States and vocabulary rows taken at a time: one block of scores is 64 MB of float32.
STATES_AT_ONCE = 4096
WORDS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Readout:
    """The k best vocabulary entries for each state.

    Attributes:
        ids: Vocabulary ids, best first, ``[..., k]``.
        scores: Cosine (EmbedLens) or log-probability (logit lens), ``[..., k]``.
        tokenizer: Turns ids into words.
    """

    ids: Int[Tensor, "*state k"]
    scores: Float[Tensor, "*state k"]
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.ids.shape != self.scores.shape:
            raise ValueError(f"ids {tuple(self.ids.shape)}, scores {tuple(self.scores.shape)}")

    @property
    def words(self) -> NDArray[np.str_]:
        """The vocabulary entries as text, ``[..., k]``."""
        unique, inverse = np.unique(self.ids.cpu().numpy(), return_inverse=True)
        names = np.array([self._word(int(token_id)) for token_id in unique])
        return names[inverse].reshape(self.ids.shape)

    def hits(self, targets: Collection[str], k: int | None = None) -> Bool[Tensor, "*state"]:
        """Whether any of the first k words is one of the targets."""
        found = np.isin(self.words[..., :k], list(targets))
        return torch.from_numpy(found.any(-1))

    @property
    def frame(self) -> pd.DataFrame:
        """One row per state and rank: state, rank (1 is best), id, word, score."""
        k = self.ids.shape[-1]
        count = self.ids.numel() // k
        return pd.DataFrame(
            {
                "state": np.repeat(np.arange(count), k),
                "rank": np.tile(np.arange(1, k + 1), count),
                "id": self.ids.reshape(-1).cpu().numpy(),
                "word": self.words.reshape(-1),
                "score": self.scores.reshape(-1).float().cpu().numpy(),
            }
        )

    def _word(self, token_id: int) -> str:
        # Decoding shows what is read ("cat"), not how the vocabulary writes it ("▁cat").
        return str(self.tokenizer.decode([token_id])).strip() or str(
            self.tokenizer.convert_ids_to_tokens(token_id)
        )


class EmbedLens:
    r"""Nearest rows of the input embedding matrix by cosine (paper, method a1).

    $\mathrm{TopK}_{i \in V}\; h^\top e_i / (\lVert h \rVert \lVert e_i \rVert)$ on the raw state:
    no norm layer, no centring; the whole vocabulary, special tokens included. Computed in
    float32. Embedding rows that are all zero have no direction and rank last.

    Args:
        model: Whose embedding and tokenizer.
    """

    def __init__(self, model: VisualLM) -> None:
        self._tokenizer = model.tokenizer
        self._embeddings = model.embeddings.detach()
        parts = torch.split(self._embeddings, WORDS_AT_ONCE)
        norms = torch.cat([part.float().norm(dim=1) for part in parts])
        self._inverse_norms = torch.where(norms > 0, 1 / norms, 0.0)
        self._null = norms == 0

    def read(self, states: Float[Tensor, "*state d"], k: int = 10) -> Readout:
        """The k nearest words of each state.

        Raises:
            InputError: States of another width, not finite or all zero, or k outside the
                vocabulary.
        """
        return _read(states, self._embeddings, k, self._tokenizer, self._top_k)

    def _top_k(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if not bool(states.any(1).all()):
            raise InputError("a state of zeros only has no direction, and so no nearest word")
        rows = torch.nn.functional.normalize(states.float(), dim=1, eps=1e-30)

        def cosines(words: slice) -> Tensor:
            scores = rows @ self._embeddings[words].float().T * self._inverse_norms[words]
            return scores.masked_fill(self._null[words], -torch.inf)

        return _running_top_k(map(cosines, _words(len(self._embeddings))), k)


class LogitLens:
    """What the model would predict from a state: final norm and head, as log-probabilities.

    Args:
        model: Whose norm, head and tokenizer.

    Raises:
        Unsupported: The model does more than norm and head to get its logits.
    """

    def __init__(self, model: VisualLM) -> None:
        if model.anatomy.logits_error > 1e-2:
            raise Unsupported(
                f"{model.name}: head(norm(h)) differs from the model's logits by "
                f"{model.anatomy.logits_error:.3g}, so a logit lens would not show what it predicts"
            )
        self._tokenizer = model.tokenizer
        self._norm = model.hf.get_submodule(model.anatomy.norm)
        head = model.hf.get_submodule(model.anatomy.head)
        self._weight: Tensor = head.weight.detach()
        self._bias: Tensor | None = None if head.bias is None else head.bias.detach()

    @torch.no_grad()
    def read(self, states: Float[Tensor, "*state d"], k: int = 10) -> Readout:
        """The k most probable next words of each state, with log-probabilities in nats.

        Takes the residual stream before the final norm.

        Raises:
            InputError: States of another width, not finite, or k outside the vocabulary.
        """
        return _read(states, self._weight, k, self._tokenizer, self._top_k)

    def _top_k(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        normed = self._norm(states.to(self._weight.dtype)).float()
        log_total = torch.full((len(states),), -torch.inf, device=states.device)

        def logits(words: slice) -> Tensor:
            nonlocal log_total
            scores: Tensor = normed @ self._weight[words].float().T
            if self._bias is not None:
                scores = scores + self._bias[words].float()
            log_total = torch.logaddexp(log_total, scores.logsumexp(1))
            return scores

        ids, scores = _running_top_k(map(logits, _words(len(self._weight))), k)
        return ids, scores - log_total[:, None]


def _read(
    states: Tensor,
    matrix: Tensor,
    k: int,
    tokenizer: Any,
    top_k: Callable[[Tensor, int], tuple[Tensor, Tensor]],
) -> Readout:
    """Check the states, read them block by block, and restore their shape."""
    vocab, width = matrix.shape
    if states.ndim == 0 or states.shape[-1] != width:
        raise InputError(f"states {tuple(states.shape)}: the last dimension must be {width}")
    if not 1 <= k <= vocab:
        raise InputError(f"k={k}: the vocabulary has {vocab} entries")
    if not bool(torch.isfinite(states).all()):
        raise InputError("the states hold NaN or infinite values, which have no nearest word")
    blocks = torch.split(states.detach().reshape(-1, width), STATES_AT_ONCE)
    parts = [top_k(block.to(matrix.device), k) for block in blocks]
    ids, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    shape = (*states.shape[:-1], k)
    return Readout(ids.view(shape), scores.view(shape), tokenizer)


def _words(vocab: int) -> list[slice]:
    starts = range(0, vocab, WORDS_AT_ONCE)
    return [slice(start, min(start + WORDS_AT_ONCE, vocab)) for start in starts]


def _running_top_k(blocks: Iterable[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Ids and values of the k largest scores per row, over consecutive blocks of columns."""
    ids, best, seen = None, None, 0
    for scores in blocks:
        top, where = scores.topk(min(k, scores.shape[1]), dim=1)
        where = where + seen
        seen += scores.shape[1]
        if ids is not None and best is not None:
            top, where = torch.cat([best, top], dim=1), torch.cat([ids, where], dim=1)
        best, order = top.topk(min(k, top.shape[1]), dim=1)
        ids = where.gather(1, order)
    if ids is None or best is None:
        raise ValueError("no scores to choose from")
    return ids, best
