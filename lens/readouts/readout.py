"""What a lens found for each state: vocabulary entries, best first.

An id is not a word: without a tokenizer there are ids only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .readout_html import readout_html
from .shown_in_viewer import open_viewer


@dataclass(frozen=True, eq=False)
class Readout:
    """The k best vocabulary entries for each state.

    Attributes:
        ids: Vocabulary ids, best first, ``[..., k]``.
        scores: What the lens ranks them by (a cosine, a log-probability), ``[..., k]``.
        tokenizer: Turns ids into words; None if the model came without one.
    """

    ids: Int[Tensor, "*state k"]
    scores: Float[Tensor, "*state k"]
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.ids.shape != self.scores.shape:
            raise ValueError(f"ids {tuple(self.ids.shape)}, scores {tuple(self.scores.shape)}")

    def __repr__(self) -> str:
        *states, k = self.ids.shape
        first = ""
        if self.tokenizer is not None and self.ids.numel():
            first = f", the first state is near {self.words.reshape(-1, k)[0, :3].tolist()}"
        return f"Readout({' × '.join(map(str, states)) or 1} states, {k} words each{first})"

    def _repr_html_(self) -> str:
        entries = self.ids.cpu().numpy() if self.tokenizer is None else self.words
        return readout_html(repr(self), entries, self.scores.float().cpu().numpy())

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

    def view(self, batch: Any, **shown: Any) -> Any:
        """Look at the words at their places in the image, where the states are visual tokens.

        Args:
            batch: Whose visual tokens were read: states ``[visual]`` or ``[layer, visual]``.
            **shown: ``layers`` of the first axis, ``measures`` (numbers of the tokens by name) and
                a ``title``, as `embedlens.analyses.view` takes them.

        Returns:
            A `embedlens.analyses.View`, which shows itself in a notebook.

        Raises:
            InputError: A readout of other states than these, or without a tokenizer.
        """
        return open_viewer(self, batch, **shown)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per state and rank: state, rank (1 is best), id, word, score.

        There is no column ``word`` if there is no tokenizer.
        """
        table = ranks(self.scores)
        table.insert(2, "id", self.ids.flatten().cpu().numpy())
        if self.tokenizer is not None:
            table.insert(3, "word", self.words.ravel())
        return table


def ranks(scores: Float[Tensor, "*state k"]) -> pd.DataFrame:
    """One row per state and rank: state, rank (1 is best), score."""
    rows = rearrange(scores, "... k -> (...) k").float().cpu().numpy()
    count, k = rows.shape
    return pd.DataFrame(
        {
            "state": repeat(np.arange(count), "state -> (state k)", k=k),
            "rank": repeat(np.arange(1, k + 1), "k -> (state k)", state=count),
            "score": rows.ravel(),
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
