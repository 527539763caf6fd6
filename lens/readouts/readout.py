"""What a lens found for each state: vocabulary entries, best first.

The hazard: an id is not a word. Without a tokenizer nothing here pretends to know words.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, eq=False)
class Readout:
    """The k best vocabulary entries for each state.

    Attributes:
        ids: Vocabulary ids, best first, ``[..., k]``.
        scores: Cosine (EmbedLens) or log-probability (logit lens), ``[..., k]``.
        tokenizer: Turns ids into words; None if the model came without one.
    """

    ids: Int[Tensor, "*state k"]
    scores: Float[Tensor, "*state k"]
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.ids.shape != self.scores.shape:
            raise ValueError(f"ids {tuple(self.ids.shape)}, scores {tuple(self.scores.shape)}")

    @property
    def words(self) -> NDArray[np.str_]:
        """The vocabulary entries as text, ``[..., k]``.

        Raises:
            InputError: There is no tokenizer.
        """
        unique, inverse = np.unique(self.ids.cpu().numpy(), return_inverse=True)
        names = np.array([word_of(self.tokenizer, int(token_id)) for token_id in unique])
        return names[inverse].reshape(self.ids.shape)

    def hits(self, targets: Collection[str], k: int | None = None) -> Bool[Tensor, "*state"]:
        """Whether any of the first k words is one of the targets.

        Raises:
            InputError: There is no tokenizer.
        """
        found = np.isin(self.words[..., :k], list(targets))
        return torch.from_numpy(found.any(-1))

    @property
    def frame(self) -> pd.DataFrame:
        """One row per state and rank: state, rank (1 is best), id, word, score.

        There is no column ``word`` if there is no tokenizer.
        """
        table = ranks(self.scores)
        table.insert(2, "id", self.ids.reshape(-1).cpu().numpy())
        if self.tokenizer is not None:
            table.insert(3, "word", self.words.reshape(-1))
        return table


def ranks(scores: Float[Tensor, "*state k"]) -> pd.DataFrame:
    """One row per state and rank: state, rank (1 is best), score."""
    k = scores.shape[-1]
    count = scores.numel() // k
    return pd.DataFrame(
        {
            "state": np.repeat(np.arange(count), k),
            "rank": np.tile(np.arange(1, k + 1), count),
            "score": scores.reshape(-1).float().cpu().numpy(),
        }
    )


def word_of(tokenizer: Any, token_id: int) -> str:
    """What is read, such as "cat", not how the vocabulary writes it, such as "▁cat".

    Raises:
        InputError: There is no tokenizer.
    """
    if tokenizer is None:
        raise InputError(
            "the model came without a tokenizer, so there are ids but no words: "
            "VisualLM(hf_model, processor)"
        )
    return str(tokenizer.decode([token_id])).strip() or str(
        tokenizer.convert_ids_to_tokens(token_id)
    )
