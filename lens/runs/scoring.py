"""Teacher-forced scoring: append answers to prompts, read off what the model thought of them.

Where a prompt is seen in both directions (PaliGemma), an answer given in the same pass and not
marked as generated is seen by its own prompt, and scores itself: so such a model is tested once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from ..anatomy.embedded_ids import check_ids
from ..errors import InputError, Unsupported
from ..inputs.batch import Batch, refuse_unencoded
from ..opening.wrapping import need_processor
from ..torch_settings import default_torch
from .forward import Output, Request, forward_pass, refusal, run
from .generation import end_tokens
from .plan_protocol import Intervention, Pass, in_force
from .proof_record import proven_of
from .run import Scores

Answers = Sequence[str | Sequence[int]]


@default_torch()
@torch.no_grad()
def score(
    model: Any,
    batch: Batch,
    answers: Answers,
    plan: Intervention | None = None,
    *,
    end: bool = False,
    first: bool = False,
    remote: bool | str = False,
) -> Scores:
    """Log-probability of given answers after the prompts, in one forward pass.

    Operations of phase ``decode`` act on the answer's tokens, as they would if the model
    had generated them.

    Args:
        model: The VisualLM whose method this is.
        batch: The prompts.
        answers: One per sample: text, or the ids of its tokens as :meth:`generate_ids` gives them.
        plan: What to change.
        end: Whether the end belongs to the answer: any of the tokens that end one for this model,
            whose probabilities are added up.
        first: Whether to keep what the model would say at each answer's first position.
        remote: As in :meth:`trace`.

    Raises:
        InputError: Not one answer per sample, or an answer without tokens.
        Unsupported: The prompt's tokens would see the answer.
    """
    tokenizer = need_processor(model.processor).tokenizer
    answered = AnswerTokens.of(tokenizer, answers, len(batch), end=end, first=first)
    request = score_request(model, batch, answered, remote)
    host = in_force(plan, model, batch, request.during)
    output = forward_pass(model, host, request)
    return as_scores(model, batch, answered, plan, request, output)


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """The token ids of one answer per sample, padded on the right."""

    ids: Int[Tensor, "sample answer"]  # ``[sample, answer]``
    mask: Bool[Tensor, "sample answer"]  # where ``ids`` is part of the answer
    end: bool = False  # whether the last token stands for any that ends an answer
    first: bool = False  # whether the distribution at the answer's first position is kept

    @property
    def length(self) -> int:
        """Tokens of the longest answer."""
        return int(self.ids.shape[1])

    @staticmethod
    def of(
        tokenizer: Any, answers: Answers, n_samples: int, *, end: bool, first: bool = False
    ) -> AnswerTokens:
        """Tokenise answers as a continuation of the prompt (no special tokens but the end).

        Answers given as ids are taken as they are: text that was written token by token is not
        always tokenised in the same way again.
        """
        if isinstance(answers, str) or len(answers) != n_samples:
            raise InputError(f"{n_samples} samples need a list of {n_samples} answers")
        rows = [
            tokenizer(answer, add_special_tokens=False).input_ids
            if isinstance(answer, str)
            else [int(token) for token in answer]
            for answer in answers
        ]
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
        return AnswerTokens(ids, mask, end, first)

    def append_to(self, inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
        """The inputs with the answers behind every sequence, padding masked out."""
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
                tail = repeat(
                    _generated_type(model, name, tensor),
                    "sample 1 -> sample answer",
                    answer=self.length,
                )
            extended[name] = torch.cat([tensor, tail.to(tensor)], dim=1)
        return extended

    def scores(
        self, logits: Float[Tensor, "sample kept vocab"], ends: Sequence[int] = ()
    ) -> Scores:
        """Read the answers' log-probabilities off the last ``length + 1`` positions' logits."""
        mask = self.mask.to(logits.device)
        ids = self.ids.to(logits.device)
        predictions = logits[:, -self.length - 1 : -1].float()
        logprobs, best = predictions.log_softmax(-1), predictions.argmax(-1)
        if int(ids.max()) >= logits.shape[-1]:
            raise InputError(
                f"an answer has id {int(ids.max())}, and the model says ids up to "
                f"{logits.shape[-1] - 1} only"
            )
        chosen = logprobs.gather(-1, ids[..., None])[..., 0]
        greedy = (best == ids) | ~mask
        if self.end and ends:
            last = torch.arange(self.length, device=mask.device) == mask.sum(1, keepdim=True) - 1
            said = [token for token in ends if token < logits.shape[-1]]
            known = torch.tensor(said, device=logits.device)
            chosen = torch.where(last, logprobs[..., known].logsumexp(-1), chosen)
            greedy |= last & torch.isin(best, known)
        # A clone, so that the other positions' logits are let go.
        opening = logprobs[:, 0].clone() if self.first else None
        return Scores((chosen * mask).sum(1), mask.sum(1), greedy.all(1), opening)


def score_request(model: Any, batch: Batch, answered: AnswerTokens, remote: bool | str) -> Request:
    """A pass over prompts and answers that returns the answers' logits and reads nothing else.

    Raises:
        InputError: An answer has ids that the model does not know.
    """
    refuse_unencoded(batch)
    check_ids(answered.ids, model.anatomy.vocab_size, model.tokenizer)
    placeholders = torch.tensor(model.anatomy.visual_ids, dtype=torch.long)
    held = (torch.isin(answered.ids, placeholders) & answered.mask).any(1).nonzero()[:, 0]
    if len(held):
        raise InputError(
            f"the answer of sample {int(held[0])} holds the placeholder of an image, for which "
            "there is none"
        )
    return Request(
        inputs=answered.append_to(batch.inputs, model.hf),
        during=Pass("scoring", answered.length, remote),
        arguments=model.anatomy.last_logits(answered.length + 1),
        samples=len(batch),
        sites=[],
        rows=torch.zeros(0, dtype=torch.long),
        columns=torch.zeros(0, dtype=torch.long),
        said=answered.length + 1,
    )


def as_scores(
    model: Any,
    batch: Batch,
    answered: AnswerTokens,
    plan: Intervention | None,
    request: Request,
    output: Output,
) -> Scores:
    """A pass over prompts and answers as users see it."""
    looks_ahead = "bidirectional_image" in model.anatomy.capabilities
    proven, kind = proven_of(model.hf), ("answers unseen", model.attn_implementation, len(batch))
    if looks_ahead and kind not in proven.right:
        alone = run(model, batch, plan, remote=request.during.remote).logits
        assert alone is not None
        _check_unseen(alone, output.logits, answered.length)
        proven.right[kind] = True
    scores = answered.scores(output.logits, end_tokens(model))
    # An answer that the model never says has minus infinity.
    if bool(scores.logprob.isnan().any()):
        raise refusal(model, batch, plan, request)
    return scores


def _check_unseen(
    alone: Float[Tensor, "sample vocab"], answered: Float[Tensor, "sample kept vocab"], length: int
) -> None:
    """Check that an answer of ``length`` tokens left its prompt's last logits as they were."""
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
