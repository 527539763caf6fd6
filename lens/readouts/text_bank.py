"""A bank of words in their sentences: contextual text states to compare visual tokens with.

What is the same is kept once: a sentence given twice, or a beginning that sentences share, gives
the same state again and again, and the k nearest entries would then be one entry k times.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..model import VisualLM
from ..tensor_file import read_tensor_file, write_tensor_file
from ..tolerances import TEXT_STATES
from ..torch_settings import default_torch
from .text_states import TextPass, text_passes

_FORMAT = "embedlens.text_bank"
_ARRAYS = ("ids", "text", "position", "span")


@dataclass(frozen=True, eq=False)
class TextBank:
    """Words in sentences, with their states at some layers.

    Takes ``words × layers × d`` numbers of the model's own type in main memory: choose the layers,
    or cap the contexts of each word, where that is much.

    Attributes:
        texts: The sentences.
        ids: Vocabulary id of every word, ``[word]``.
        text: Which sentence it stands in, ``[word]``.
        position: How many tokens come before it there, special ones too, ``[word]``.
        span: First and one past the last character there, ``[word, 2]``; -1 if unknown.
        states: Per layer the stream entering it, ``[state, d]``.
        word: Per layer, which word each state belongs to, ``[state]``. At layer 0 a word has one
            state for all its contexts, unless the model adds positions to its embeddings.
        model: Name of the model that made them.
    """

    texts: tuple[str, ...]
    ids: Int[np.ndarray, " word"]
    text: Int[np.ndarray, " word"]
    position: Int[np.ndarray, " word"]
    span: Int[np.ndarray, "word 2"]
    states: Mapping[int, Float[Tensor, "_ d"]]
    word: Mapping[int, Int[Tensor, " _"]]
    model: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that states are kept of."""
        return tuple(sorted(self.states))

    def context(self, word: int) -> str:
        """The sentence of one word with the word in brackets."""
        text = self.texts[int(self.text[word])]
        start, stop = (int(place) for place in self.span[word])
        if start < 0:
            return text
        # Some tokenizers count the space before a word to it.
        start = stop - len(text[start:stop].lstrip())
        return f"{text[:start]}[{text[start:stop]}]{text[stop:]}"

    @staticmethod
    @default_torch()
    def of(
        model: VisualLM,
        texts: Sequence[str],
        layers: Collection[int] | Literal["all"] = "all",
        *,
        max_contexts: int | None = None,
    ) -> TextBank:
        """Run sentences through the model, without any image, and keep their words' states.

        Special tokens are left out. A word whose sentence up to there was seen before is left out
        too, because it has the same state (unless the model reads text in both directions, which
        is measured).

        Args:
            model: The model.
            texts: Sentences.
            layers: Layers to keep, 0 to ``n_layers``.
            max_contexts: Of each word keep this many contexts, the first ones; all when None.

        Raises:
            InputError: No texts, none with an ordinary token, a layer that does not exist, or a
                model without a tokenizer or that takes no text alone.
            Unsupported: The model has no single residual stream.
        """
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        if isinstance(texts, str) or not distinct:
            raise InputError("the text bank is empty: give a list of at least one sentence")
        if not isinstance(layers, str | Integral) and not len(layers):
            raise InputError("no layer was chosen: the text bank needs at least one")
        if max_contexts is not None and max_contexts < 1:
            raise InputError(f"max_contexts={max_contexts}: at least 1, or None for all")
        causal = _reads_forwards(model, max(distinct[:32], key=len))
        seen: set[tuple[int, ...]] = set()
        contexts: Counter[int] = Counter()
        kept: list[TextPass] = []
        for made in text_passes(model, distinct, layers):
            chosen = []
            for row, before in enumerate(made.before):
                word = int(made.ids[row])
                full = max_contexts is not None and contexts[word] >= max_contexts
                if full or (causal and before in seen):
                    continue
                seen.add(before)
                contexts[word] += 1
                chosen.append(row)
            kept.append(_rows(made, np.array(chosen, dtype=np.int64)))
        ids = np.concatenate([part.ids for part in kept])
        if not len(ids):
            raise InputError("the text bank has special tokens only: give ordinary sentences")
        states: dict[int, Tensor] = {}
        words: dict[int, Tensor] = {}
        for layer in sorted(kept[0].states):
            # Taken out of the passes, so that no layer is held twice for longer than this.
            whole = torch.cat([part.states.pop(layer) for part in kept])
            words[layer] = _distinct(whole, ids) if layer == 0 else torch.arange(len(whole))
            states[layer] = whole[words[layer]] if len(words[layer]) < len(whole) else whole
        return TextBank(
            tuple(distinct),
            ids,
            np.concatenate([part.text for part in kept]),
            np.concatenate([part.position for part in kept]),
            np.concatenate([part.span for part in kept]),
            states,
            words,
            model.name,
        )

    @default_torch()
    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write everything into one safetensors file.

        Args:
            path: Where to; its folder must be there.
            overwrite: Replace an older saved text bank. Any other file is never replaced.

        Raises:
            InputError: There is a file already, or no folder for it.
        """
        letters = np.frombuffer(json.dumps(self.texts).encode(), dtype=np.uint8)
        arrays = {name: getattr(self, name) for name in _ARRAYS} | {"texts": letters}
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        for layer in self.layers:
            tensors[f"states.{layer}"] = self.states[layer].contiguous()
            tensors[f"word.{layer}"] = self.word[layer]
        write_tensor_file(path, _FORMAT, {"model": self.model}, tensors, overwrite=overwrite)

    @staticmethod
    @default_torch()
    def load(path: str | Path) -> TextBank:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: No such file, not one of a text bank, or a damaged one.
        """
        cannot = "no text bank can be read from {}"
        record, stored = read_tensor_file(path, _FORMAT, what="a text bank", cannot=cannot)

        def by_layer(kind: str) -> dict[int, Tensor]:
            names = [name for name in stored if name.startswith(f"{kind}.")]
            return {int(name.partition(".")[2]): stored[name] for name in names}

        try:
            return TextBank(
                tuple(json.loads(stored["texts"].numpy().tobytes())),
                **{name: stored[name].numpy() for name in _ARRAYS},
                states=by_layer("states"),
                word=by_layer("word"),
                model=record["model"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{cannot.format(repr(str(path)))}: {error}") from None

    @default_torch()
    def check(self, model: VisualLM) -> None:
        """Make sure that these states are this model's, by running one sentence again.

        Raises:
            InputError: They are not.
        """
        layer = self.layers[-1]
        states, word = self.states[layer], self.word[layer].numpy()
        one = int(self.text[word[-1]])
        mine = np.flatnonzero(self.text[word] == one)
        if states.shape[1] == model.anatomy.hidden_size and layer <= model.n_layers:
            again = next(text_passes(model, [self.texts[one]], [layer]))
            here = np.isin(again.position, self.position[word[mine]])
            if again.ids[here].tolist() == self.ids[word[mine]].tolist():
                found = again.states[layer].cpu()[torch.from_numpy(here)]
                if bool(_same(states[torch.from_numpy(mine)], found).all()):
                    return
        raise InputError(
            f"this text bank was made by {self.model!r} and its states are not those of "
            f"{model.name!r} at layer {layer}: make one with TextBank.of(model, texts)"
        )


def _rows(made: TextPass, rows: Int[np.ndarray, " kept"]) -> TextPass:
    chosen = torch.from_numpy(rows)
    return TextPass(
        # In main memory: a bank may be larger than what an accelerator has to spare.
        {k: state[chosen.to(state.device)].cpu() for k, state in made.states.items()},
        made.ids[rows],
        made.text[rows],
        made.position[rows],
        made.span[rows],
        (),
    )


def _distinct(states: Float[Tensor, "word d"], ids: Int[np.ndarray, " word"]) -> Tensor:
    """Words whose state is not already that of the first with the same id."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    origin = torch.from_numpy(first[inverse])
    here = torch.arange(len(ids))
    new = [
        ~_same(states[part], states[origin[part]]) | (origin[part] == part)
        for part in torch.split(here, 4096)
    ]
    return here[torch.cat(new)]


def _same(one: Float[Tensor, "state d"], other: Float[Tensor, "state d"]) -> Bool[Tensor, " state"]:
    tolerance = max(TEXT_STATES.of(one.dtype), TEXT_STATES.of(other.dtype))
    one, other = one.float(), other.float()
    close: Tensor = (one - other).norm(dim=1) <= tolerance * one.norm(dim=1)
    return close


def _reads_forwards(model: VisualLM, text: str) -> bool:
    """Whether a text's states stay the same when more text follows."""
    last = [model.n_layers]
    alone = next(text_passes(model, [text], last)).states[last[0]]
    longer = next(text_passes(model, [f"{text} {text}"], last)).states[last[0]]
    # The last token may merge with what follows.
    n = len(alone) - 1
    return n > 0 and bool(_same(alone[:n], longer[:n]).all())
