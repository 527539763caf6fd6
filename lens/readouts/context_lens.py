"""ContextLens: a state read as the nearest words in their sentences.

Deep states share large common directions, so a high cosine alone says little: compare with what
states that mean nothing get, random ones or other images' (the alignment analysis does).
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from operator import index
from typing import Literal, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..model import VisualLM
from ..opening.present_state import sample_of_weights, state_of
from ..torch_settings import default_torch
from .embedding_rows import rows_of
from .lens import ReadsWithItsModel
from .nearest_rows import NearestRows, refuse_zeros
from .readout import Readout
from .text_bank import TextBank
from .top_k import read_in_blocks


@dataclass(frozen=True, eq=False)
class ContextReadout(Readout):
    """The k best words in context for each state.

    Attributes:
        ids: Vocabulary ids of the words, best first, ``[..., k]``.
        scores: Cosines, ``[..., k]``.
        tokenizer: Turns ids into words.
        entries: Words of the bank, ``[..., k]``.
        layers: Layer that the word's state was taken at, ``[..., k]``.
        bank: Where the words come from.
    """

    entries: Int[Tensor, "*state k"]
    layers: Int[Tensor, "*state k"]
    bank: TextBank

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.entries.shape == self.layers.shape == self.scores.shape:
            shapes = [tuple(t.shape) for t in (self.entries, self.layers, self.scores)]
            raise ValueError(f"entries, layers and scores of shapes {shapes}")

    @property
    def sentences(self) -> NDArray[np.str_]:
        """The sentences they stand in, ``[..., k]``."""
        texts: NDArray[np.str_] = np.array(self.bank.texts)
        found: NDArray[np.str_] = texts[self.bank.text[self.entries.cpu().numpy()]]
        return found

    @property
    def contexts(self) -> NDArray[np.str_]:
        """The sentences with the word in brackets, ``[..., k]``."""
        unique, inverse = np.unique(self.entries.cpu().numpy(), return_inverse=True)
        marked = np.array([self.bank.context(int(entry)) for entry in unique])
        return marked[inverse].reshape(self.entries.shape)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per state and rank: state, rank, id, word, layer, context, score."""
        table = super().frame
        table.insert(4, "layer", self.layers.flatten().cpu().numpy())
        table.insert(5, "context", self.contexts.ravel())
        return table


class ContextLens(ReadsWithItsModel):
    """Nearest text states by cosine: words as they are inside sentences, not as they enter.

    The comparison of LatentLens (arXiv 2602.00462): the raw state against residual streams of text
    that the same model read without any image, at one layer or at all of the bank's, ranked
    together. Computed in float32, a block at a time.

    Args:
        model: The model.
        texts: Sentences to run through it, or a bank of them that was made before.
        layers: Layers 0 to ``n_layers`` to keep of the sentences; a bank has its own.
        max_contexts: Of each word keep this many contexts; all when None.

    Raises:
        InputError: No usable sentence, a layer that does not exist, layers or contexts given for
            a finished bank, or a bank that another model made.
    """

    ranked_by = "cosine"

    @default_torch()
    def __init__(
        self,
        model: VisualLM,
        texts: Sequence[str] | TextBank,
        layers: Collection[int] | Literal["all"] = "all",
        *,
        max_contexts: int | None = None,
    ) -> None:
        if isinstance(texts, TextBank):
            if not (isinstance(layers, str) and layers == "all") or max_contexts is not None:
                raise InputError("a finished bank has its layers and contexts: leave these out")
            texts.check(model)
            self.bank = texts
        else:
            self.bank = TextBank.of(model, texts, layers, max_contexts=max_contexts)
        self._model = model
        self._tokenizer = model.tokenizer
        self._width = model.anatomy.hidden_size
        self._seen = _seen_of(model)
        self._nearest: dict[int, NearestRows] = {}

    @default_torch()
    def read(
        self,
        states: Float[Tensor, "*state d"],
        k: int = 10,
        layer: SupportsIndex | Collection[SupportsIndex] | None = None,
    ) -> ContextReadout:
        """The k nearest words in context of each state.

        Args:
            states: States of the same model.
            k: How many.
            layer: Compare with text states of this layer, for instance the one that the states
                were read at, or of several, ranked together; of all the bank's when None. At which
                layer a word was found, ``layers`` of the readout says.

        Raises:
            InputError: A layer the bank does not have; states of another width, not finite or all
                zero; k larger than the number of text states; or a model that has changed since
                (trained, an adapter toggled), so that the bank's states are not its own any more.
        """
        if not _same_as(self._seen, now := _seen_of(self._model)):
            self.bank.check(self._model)
            self._seen = now
        layers = self._layers(layer)
        sizes = [len(self.bank.states[n]) for n in layers]
        starts = [0, *np.cumsum(sizes).tolist()]

        def top_k(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
            refuse_zeros(block)
            ids, scores = [], []
            for n, size, start in zip(layers, sizes, starts, strict=False):
                best, cosines = self._search(n).top_k(block, min(k, size))
                ids.append(best + start)
                scores.append(cosines)
            top, order = torch.cat(scores, 1).topk(k, dim=1)
            return torch.cat(ids, 1).gather(1, order), top

        found, scores = read_in_blocks(states, self._width, k, sum(sizes), top_k)
        words = torch.cat([self.bank.word[n] for n in layers]).to(found.device)
        at = torch.repeat_interleave(torch.tensor(layers), torch.tensor(sizes)).to(found.device)
        entries = words[found]
        ids = torch.from_numpy(self.bank.ids[entries.cpu().numpy()])
        return ContextReadout(ids, scores, self._tokenizer, entries, at[found], self.bank)

    def _layers(self, given: SupportsIndex | Collection[SupportsIndex] | None) -> tuple[int, ...]:
        """The bank's layers that are meant, each once."""
        if given is None:
            return tuple(self.bank.layers)
        several = list(given) if isinstance(given, Collection) else [given]
        kept = ", ".join(str(n) for n in self.bank.layers)
        if not several:
            raise InputError(f"layer={given!r}: none is given, and this bank has {kept}")
        wrong = [n for n in several if not isinstance(n, Integral) or n not in self.bank.states]
        if wrong:
            raise InputError(f"no layer {wrong[0]!r} in this bank: it has {kept}")
        return tuple(dict.fromkeys(index(layer) for layer in several))

    def _search(self, layer: int) -> NearestRows:
        if layer not in self._nearest:
            states = self.bank.states[layer]
            self._nearest[layer] = NearestRows(partial(rows_of, states), len(states))
        return self._nearest[layer]


def _seen_of(model: VisualLM) -> tuple[Hashable, Tensor]:
    return state_of(model.hf), sample_of_weights(model.hf)


def _same_as(one: tuple[Hashable, Tensor], other: tuple[Hashable, Tensor]) -> bool:
    return one[0] == other[0] and torch.equal(one[1], other[1])
