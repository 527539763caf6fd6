"""Patchscope: a state read by what the model says when it stands in another prompt.

A prompt that a model does not follow reads nothing: a random model, or one that never learnt to
copy, still has a most probable next word. So the default prompt is tried on plain words first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, Unsupported
from ..inputs.batch import Batch
from ..model import VisualLM
from ..runs.plan_protocol import Intervention
from ..runs.remote import need_weights
from ..runs.run import Run
from ..torch_settings import default_torch
from .embedding_rows import Words
from .lens import ReadsWithItsModel, register_lens
from .patching_plan import written_states
from .readout import Readout, word_of
from .text_states import tokenize
from .top_k import read_in_blocks

IDENTITY = "cat -> cat\n1135 -> 1135\nhello -> hello\n? ->"
"""The default prompt: few-shot identity, arXiv 2401.06102."""

# What the set of tokens that are written is called in a batch.
_PLACE = "placeholder"
# How many plain words the default prompt is tried on, and how many it has to give back.
_TRIED, _ENOUGH = 32, 16


@register_lens
class Patchscope(ReadsWithItsModel):
    """What the model says of a state that is put in the place of a word of a text.

    A Patchscope (arXiv 2401.06102; whether the paper has one is not known, docs/method.md (e)): the
    state takes the place of the prompt's placeholder in the residual stream entering a layer, by
    `PatchTokens`, and the words are the model's most probable next ones behind the prompt, as
    log-probabilities. Every state takes a forward pass over the prompt, so what compares lenses
    does not take this one by itself: pass ``lenses=[…, Patchscope(model)]``.

    The default prompt asks for the same word again. It is tried on plain words when the lens is
    made, and refused where the model does not give back half of them. Of your own prompt
    :meth:`gives_back` tells the share.

    Args:
        model: The model.
        prompt: The text; no chat template is put around it.
        placeholder: A word of the prompt that is one token; the last of them is written.
        target: Layer before which states are written, 0 to ``n_layers - 1``; or ``same``, the
            layer that they entered, as :meth:`read` is told.
        at_once: States per forward pass.

    Raises:
        InputError: A model without a tokenizer or that takes no text alone, no such placeholder or
            layer, a prompt with words that the tokenizer does not know, or ``at_once`` below 1.
        Unsupported: A model without a residual stream of its own to write into, or that does not
            follow the default prompt.
    """

    ranked_by = "log-probability"
    runs_the_model = True

    @default_torch()
    def __init__(
        self,
        model: VisualLM,
        prompt: str = IDENTITY,
        placeholder: str = "?",
        *,
        target: SupportsIndex | Literal["same"] = 0,
        at_once: int = 32,
    ) -> None:
        need_weights(model.hf, "Patchscope")
        model.anatomy.require("residual")
        if model.tokenizer is None:
            raise InputError(
                "the model came without a tokenizer, so it cannot read a prompt: "
                "VisualLM(hf_model, processor)"
            )
        if isinstance(target, str) and target != "same":
            raise InputError(f"target={target!r}: a layer by number, or 'same'")
        if at_once < 1:
            raise InputError(f"at_once={at_once}: at least one state per pass")
        self._model, self._at_once = model, at_once
        self._target = None if isinstance(target, str) else self._layer(target)
        self.prompt, self.placeholder = prompt, placeholder
        self._words = Words(model.tokenizer)
        tokens, _ = tokenize(model, [prompt])
        self._inputs: dict[str, Tensor] = tokens
        ids = tokens["input_ids"][0].tolist()
        named = [word_of(model.tokenizer, token) for token in ids]
        unknown = model.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            message = (
                f"the tokenizer of {model.name!r} does not know all words of the prompt "
                f"{prompt!r} (it reads {' '.join(named)!r}): write one with words that it knows, "
                "Patchscope(model, prompt=…, placeholder=…)"
            )
            raise Unsupported(message) if prompt == IDENTITY else InputError(message)
        if placeholder not in named:
            raise InputError(
                f"no token of the prompt reads {placeholder!r}: its tokens are {named}; name one "
                "of them as placeholder=…"
            )
        self._place = len(named) - 1 - named[::-1].index(placeholder)
        if prompt == IDENTITY:
            self._refuse_what_is_not_followed()

    @default_torch()
    def read(
        self, states: Float[Tensor, "*state d"], k: int = 10, layer: SupportsIndex = 0
    ) -> Readout:
        """The k words that the model most probably says next, with log-probabilities in nats.

        Args:
            states: States of the same model.
            k: How many words.
            layer: The layer that the states entered, 0 to ``n_layers``. With ``target="same"`` they
                are written before it; those behind the last layer before the last layer, since
                nothing reads them later.

        Raises:
            InputError: No such layer; states of another width or not finite, or k outside the
                vocabulary.
            NotFinite: The model makes numbers of them that are not.
        """
        at, width = self._written_at(layer), self._model.anatomy.hidden_size

        def top_k(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
            parts = [self._said(part, at, k) for part in torch.split(block, self._at_once)]
            ids, scores = (torch.cat(column) for column in zip(*parts, strict=True))
            return ids, scores

        choices = int(self._words.among(self._model.anatomy.vocab_size).sum())
        ids, scores = read_in_blocks(states, width, k, choices, top_k)
        return Readout(ids, scores, self._model.tokenizer)

    @default_torch()
    def write(
        self,
        states: Float[Tensor, "*state d"],
        layer: SupportsIndex = 0,
        *,
        max_new_tokens: int = 5,
    ) -> NDArray[np.str_]:
        """What the model writes behind the prompt, greedily: a text per state.

        Args:
            states: As for :meth:`read`.
            layer: Likewise.
            max_new_tokens: Where a text is cut.

        Raises:
            InputError: No such layer, or states of another width or not finite.
        """
        at, flat = self._written_at(layer), self._flat(states)
        texts: list[str] = []
        for part in torch.split(flat, self._at_once) if len(flat) else ():
            batch, plan = self._patched(part, at)
            texts += self._model.generate(
                batch, plan, do_sample=False, max_new_tokens=max_new_tokens
            )
        return np.array(texts, dtype=np.str_).reshape(states.shape[:-1])

    @default_torch()
    def gives_back(self, words: Sequence[str] | None = None, *, seed: int = 0) -> float:
        """The share of plain words that the model says next when they are the placeholder.

        Nothing is patched here: it tells whether the model follows the prompt at all. For a prompt
        that asks for something else than the same word this is no measure.

        Args:
            words: Words that are one token each; by default 32 of the vocabulary, of letters only.
            seed: Of their draw.

        Raises:
            InputError: A word that is not one token.
        """
        ids = self._plain_ids(seed) if words is None else [self._id_of(word) for word in words]
        batch = self._batch(len(ids))
        inputs = {name: value.clone() for name, value in batch.inputs.items()}
        given = torch.tensor(ids, device=inputs["input_ids"].device)
        inputs["input_ids"][:, self._place] = given
        run = self._model.run(self._model.batch(inputs))
        said, _ = self._best(run, 1)
        tokenizer = self._model.tokenizer
        named = ([word_of(tokenizer, int(i)) for i in column] for column in (said[:, 0], given))
        return float(np.mean([one == other for one, other in zip(*named, strict=True)]))

    def _said(
        self, states: Float[Tensor, "state d"], layer: int, k: int
    ) -> tuple[Int[Tensor, "state k"], Float[Tensor, "state k"]]:
        if not len(states):
            return torch.zeros(0, k, dtype=torch.long), torch.zeros(0, k)
        batch, plan = self._patched(states, layer)
        return self._best(self._model.run(batch, plan), k)

    def _best(self, run: Run, k: int) -> tuple[Tensor, Tensor]:
        """The likeliest next words that are words of the tokenizer."""
        assert run.logits is not None
        logs = torch.log_softmax(run.logits.float(), dim=-1)
        logs[:, ~self._words.among(logs.shape[-1]).to(logs.device)] = -torch.inf
        scores, ids = logs.topk(k, dim=-1)
        return ids, scores

    def _patched(self, states: Float[Tensor, "state d"], layer: int) -> tuple[Batch, Intervention]:
        """As many prompts as states, and the plan that writes these."""
        batch, rows = self._batch(len(states)), torch.arange(len(states))
        columns = torch.full_like(rows, self._place)
        held = Run(None, rows, columns, {layer: states}, {}, {}, batch=batch)
        return batch, written_states(held, layer, _PLACE)

    def _batch(self, count: int) -> Batch:
        inputs = {n: value.expand(count, -1).clone() for n, value in self._inputs.items()}
        place = np.zeros((count, inputs["input_ids"].shape[1]), dtype=bool)
        place[:, self._place] = True
        return self._model.batch(inputs).with_tokens(**{_PLACE: place})

    def _flat(self, states: Float[Tensor, "*state d"]) -> Float[Tensor, "state d"]:
        width = self._model.anatomy.hidden_size
        if states.ndim == 0 or states.shape[-1] != width:
            raise InputError(f"states {tuple(states.shape)}: the last dimension must be {width}")
        if not bool(torch.isfinite(states).all()):
            raise InputError("the states hold NaN or infinite values, which cannot be read")
        return rearrange(states.detach(), "... d -> (...) d")

    def _layer(self, layer: SupportsIndex, end: int = 0) -> int:
        """A layer by number, ``end`` more than there are allowed."""
        last = self._model.n_layers - 1 + end
        if not 0 <= (at := layer.__index__()) <= last:
            raise InputError(f"no layer {at} to write states before: there are 0 to {last}")
        return at

    def _written_at(self, layer: SupportsIndex) -> int:
        entered = self._layer(layer, end=1)
        return min(entered, self._model.n_layers - 1) if self._target is None else self._target

    def _plain_ids(self, seed: int) -> list[int]:
        """Words of at least three letters that the vocabulary has with a blank before them."""
        tokenizer: Any = self._model.tokenizer
        blank = tokenizer.convert_ids_to_tokens(self._inputs["input_ids"][0].tolist())
        order = np.random.default_rng(seed).permutation(sorted(tokenizer.get_vocab().values()))
        special, found = {*tokenizer.all_special_ids}, []
        mark = next((token[0] for token in blank if token[:1] in ("Ġ", "▁")), "")
        for token in order.tolist():
            name = str(tokenizer.convert_ids_to_tokens(token))
            word = name.removeprefix(mark)
            begins = name.startswith(mark) and token not in special
            if begins and len(word) > 2 and word.isascii() and word.isalpha():
                found.append(token)
            if len(found) == _TRIED:
                break
        if not found:
            raise InputError("the vocabulary has no plain word to try the prompt on: give words=…")
        return found

    def _id_of(self, word: str) -> int:
        """The id of a word: as it stands behind a blank, or else by itself."""
        tokenizer = self._model.tokenizer
        for text in (f" {word}", word):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                return int(ids[0])
        raise InputError(f"{word!r} is not one token of the model's tokenizer: give words that are")

    def _refuse_what_is_not_followed(self) -> None:
        share = self.gives_back()
        if share < _ENOUGH / _TRIED:
            raise Unsupported(
                f"{self._model.name!r} gives back {share:.0%} of the plain words that stand in the "
                "identity prompt of Patchscope, and half are needed: what it says of a state would "
                "mean nothing. Write a prompt that it follows: "
                "Patchscope(model, prompt=…, placeholder=…)"
            )
