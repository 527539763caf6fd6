"""The logit lens: what the model would predict from a state, were it the last one.

Logits are not always ``head(norm(h))``: models scale them, cap them and forbid some, and heads may
be quantised or carry adapters. So the anatomy's verified rule is applied, and a head that does more
than multiply by its weight is called instead of read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..anatomy.anatomy import Anatomy
from ..errors import NotFinite
from ..model import VisualLM
from ..opening.placement import device_of, dtype_of
from ..runs.finite import all_finite
from ..runs.remote import need_weights
from ..torch_settings import default_torch
from .embedding_rows import Words, output_of, plain_weight
from .lens import ReadsWithItsModel, register_lens
from .nearest_rows import LAST, set_columns
from .readout import Readout
from .top_k import STATES_AT_ONCE, WORDS_AT_ONCE, TopK, products, read_in_blocks

# exp(-80) of the largest is nothing next to it; smaller ones are denormal and slow to compute.
_NOTHING = -80.0


@register_lens
class LogitLens(ReadsWithItsModel):
    """What the model would predict from a state: final norm and head, as log-probabilities.

    Scaling, soft-capping and forbidden ids are the model's own, as the anatomy found and verified
    them. Head rows for which the tokenizer has no word take their share of the probability, as in
    the model, but are not listed; ids the model never says have log-probability minus infinity.

    Args:
        model: Whose norm, head and tokenizer.

    Raises:
        Unsupported: The model does more than that to get its logits.
    """

    ranked_by = "log-probability"

    @default_torch()
    def __init__(self, model: VisualLM) -> None:
        model.anatomy.require("logit_lens")
        self._hf: Any = need_weights(model.hf, "LogitLens")
        self._anatomy = model.anatomy
        self._tokenizer = model.tokenizer
        self._words = Words(model.tokenizer)
        self._prediction()

    @default_torch()
    def read(self, states: Float[Tensor, "*state d"], k: int = 10) -> Readout:
        """The k most probable next words of each state, with log-probabilities in nats.

        Takes the residual stream before the final norm.

        Raises:
            InputError: States of another width, not finite, or k outside the vocabulary.
            NotFinite: Norm or head make numbers of them that are not.
        """
        now, width = self._prediction(), self._anatomy.hidden_size
        ids, scores = read_in_blocks(states, width, k, now.choices, now.top_k)
        return Readout(ids, scores, self._tokenizer)

    def _prediction(self) -> _Prediction:
        """With the norm and the head that are in the model now."""
        return _Prediction(self._hf, self._anatomy, self._words)


class _Prediction:
    """Log-probabilities from states, by the modules that a model has at the moment."""

    def __init__(self, hf: Any, anatomy: Anatomy, words: Words) -> None:
        self._anatomy = anatomy
        self._norm: Any = hf.get_submodule(anatomy.norm)
        self._head: Any = hf.get_submodule(anatomy.head)
        self._dtype = dtype_of(hf, hf.get_submodule(anatomy.embedding))
        self._weight = plain_weight(self._head, nn.Linear)
        self._count = len(self._weight) if self._weight is not None else self._size_of_output()
        listed = words.among(self._count)
        self.choices = int(listed.sum())
        self._unlisted = torch.nonzero(~listed)[:, 0]
        self._masked = torch.tensor(anatomy.logit_rule.masked, dtype=torch.long)

    def top_k(
        self, states: Float[Tensor, "state d"], k: int
    ) -> tuple[Int[Tensor, "state k"], Float[Tensor, "state k"]]:
        if self._weight is None:
            # All words at once, so only as many states as make a block of the usual size.
            at_once = max(1, STATES_AT_ONCE * WORDS_AT_ONCE // self._count)
            parts = [self._best(part, k) for part in torch.split(states, at_once)]
            ids, scores = (torch.cat(column) for column in zip(*parts, strict=True))
            return ids, scores
        return self._best(states, k)

    def _best(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        found: TopK | None = None
        total: Tensor | None = None
        spare: Tensor | None = None
        for words, raw in self._raw_logits(states):
            scores = self._anatomy.postprocess(raw)
            if found is None or total is None or spare is None:
                found = TopK(len(scores), k, scores.device)
                total = scores.new_full((len(scores),), -torch.inf)
                spare = scores.new_empty(scores.numel())
            set_columns(scores, words, self._masked, LAST)
            into = spare[: scores.numel()].view(scores.shape)
            peak = scores.amax(1)
            torch.sub(scores, peak[:, None], out=into)
            total = torch.logaddexp(total, into.clamp_(min=_NOTHING).exp_().sum(1).log_() + peak)
            set_columns(scores, words, self._unlisted, -torch.inf)
            found.update(scores, words.start)
        if found is None or total is None:
            raise ValueError("no words to choose from")
        if not all_finite([total]):
            raise NotFinite(
                f"final norm and head make NaN or infinite numbers of a state: their weights hold "
                f"such, or {self._dtype} is too small; load the model anew, in bfloat16 or float32"
            )
        logprobs = torch.where(found.scores == LAST, -torch.inf, found.scores - total[:, None])
        return found.ids, logprobs

    def _raw_logits(self, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """``head(norm(state))``, some words at a time, before what the model makes of it."""
        normed = self._normed(states)
        if self._weight is None:
            given = normed.to(device_of(self._head))
            yield slice(0, self._count), output_of(self._head, given).float()
            return
        weight, bias = self._weight, self._head.bias
        rows = normed.to(weight.device, torch.float32)
        del normed
        for words, scores, _ in products(rows, lambda part: weight[part], self._count):
            yield words, scores if bias is None else scores.add_(bias[words].detach())

    def _normed(self, states: Tensor) -> Tensor:
        # A norm without weights computes wherever its input is.
        device = device_of(self._norm, states.device)
        return output_of(self._norm, states.to(device, self._dtype))

    def _size_of_output(self) -> int:
        row = self._normed(torch.zeros(1, self._anatomy.hidden_size))
        given = row.to(device_of(self._head))
        return int(output_of(self._head, given).shape[-1])
