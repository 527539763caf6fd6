"""Teacher-forced scoring: append answers to prompts, read off what the model thought of them.

The hazard: where a prompt is seen in both directions (PaliGemma), an answer given in the same pass
and not marked as generated is seen by its own prompt, and scores itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from ..errors import InputError, Unsupported
from .run import Scores


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """The token ids of one answer per sample, padded on the right.

    Attributes:
        ids: ``[sample, answer]``.
        mask: True where ``ids`` is part of the answer, ``[sample, answer]``.
    """

    ids: Int[Tensor, "sample answer"]
    mask: Bool[Tensor, "sample answer"]

    @property
    def length(self) -> int:
        """Tokens of the longest answer."""
        return int(self.ids.shape[1])

    @staticmethod
    def of(tokenizer: Any, answers: Sequence[str], n_samples: int, *, end: bool) -> AnswerTokens:
        """Tokenise answers as a continuation of the prompt (no special tokens but the end)."""
        if isinstance(answers, str) or len(answers) != n_samples:
            raise InputError(f"{n_samples} samples need a list of {n_samples} answers")
        rows = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
        for answer, row in zip(answers, rows, strict=True):
            if not row:
                raise InputError(f"the answer {answer!r} has no tokens")
        if end:
            if tokenizer.eos_token_id is None:
                raise InputError("end=True needs a tokenizer with an end-of-sequence token")
            rows = [[*row, tokenizer.eos_token_id] for row in rows]
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = True
        return AnswerTokens(ids, mask)

    def append_to(self, inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """The inputs with the answers behind every sequence, padding masked out.

        Args:
            inputs: Inputs of the prompts.
            model: The transformers model, which knows the types of tokens it generates.
        """
        extended = dict(inputs)
        shape = inputs["input_ids"].shape
        for name, tensor in inputs.items():
            if tensor.shape != shape:
                continue
            if name == "input_ids":
                tail = self.ids
            elif name == "attention_mask":
                tail = self.mask.long()
            else:
                tail = _generated_type(model, name, tensor).expand(-1, self.length)
            extended[name] = torch.cat([tensor, tail.to(tensor)], dim=1)
        return extended

    def scores(self, logits: Float[Tensor, "sample kept vocab"]) -> Scores:
        """Read the answers' log-probabilities off the last ``length + 1`` positions' logits."""
        mask = self.mask.to(logits.device)
        ids = self.ids.to(logits.device)
        predictions = logits[:, -self.length - 1 : -1].float()
        chosen = predictions.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        greedy = (predictions.argmax(-1) == ids) | ~mask
        return Scores((chosen * mask).sum(1), mask.sum(1), greedy.all(1))


def check_unseen(
    alone: Float[Tensor, "sample vocab"] | None,
    answered: Float[Tensor, "sample kept vocab"],
    length: int,
) -> None:
    """Check that an answer of ``length`` tokens left its prompt's last logits as they were.

    Raises:
        Unsupported: It did not.
    """
    assert alone is not None
    before = answered[:, -length - 1].float()
    moved = float((alone.float() - before).abs().nan_to_num(0).max())
    if moved > 1e-2 * float(alone.float().nan_to_num(0, 0, 0).abs().max()):
        raise Unsupported(
            f"the prompt's tokens see the answer that stands behind them (its last logits moved by "
            f"{moved:.3g}), so its probability cannot be read off one pass: use generate()"
        )


def _generated_type(model: Any, name: str, types: Tensor) -> Tensor:
    """What the model appends to a tensor ``[sample, token]`` with a token it generates, else 0."""
    update = getattr(model, "_update_model_kwargs_for_generation", None)
    grown = types if update is None else update(CausalLMOutput(), {name: types})[name]
    return grown[:, -1:] if grown.shape[1] == types.shape[1] + 1 else torch.zeros_like(types[:, :1])
