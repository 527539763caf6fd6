"""The models that lmms-eval makes of ``--model embedlens``: a simple one and a chat."""

from __future__ import annotations

import os
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from ...lens.errors import InputError, Unsupported
from ...lens.model import VisualLM
from .harness_answers import HarnessAnswers
from .harness_condition import read_condition


class _HarnessModel(lmms):  # type: ignore[misc]
    """A model under a plan, as lmms-eval calls it.

    Args:
        pretrained: Hub id, a folder, or ``shipped`` for the small model that comes along.
        plan: The plan's file, or its text in braces; none for the untouched model.
        plan_digest: Of what is in force; what it has to be is said where it is not.
        markers: Saved markers, which tell classes of tokens apart, for plans that name them.
        nearest_words: How many nearest words ``near[id]`` looks at.
        batch_size: Requests in one pass.
        leading_blank: Whether the blank in front of a choice is part of it.
        device: Where the model is; the first GPU if there is one, or this process's own.
        dtype: Of its weights.
        attention: ``sdpa`` or ``eager``.
        revision: Of a hub repository.
        trust_remote_code: Whether code that comes with the model may run.
    """

    def __init__(
        self,
        pretrained: str = "shipped",
        plan: Any = None,
        plan_digest: str | None = None,
        markers: str | None = None,
        nearest_words: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: Any = None,
        leading_blank: bool = False,
        device: str | None = None,
        dtype: str | None = None,
        attention: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise InputError(f"--batch_size {batch_size}: give a number")
        condition = read_condition(plan, plan_digest, markers, nearest_words)
        model = VisualLM.load(
            pretrained,
            device=_own(device),
            dtype=dtype,
            attn_implementation=attention,
            revision=revision and str(revision),
            trust_remote_code=trust_remote_code,
        )
        self.hold(HarnessAnswers(model, condition, int(batch_size), leading_blank), pretrained)

    @classmethod
    def of(cls, answers: HarnessAnswers, name: str) -> _HarnessModel:
        """A model that is in memory."""
        made = cls.__new__(cls)
        made.hold(answers, name)
        return made

    def hold(self, answers: HarnessAnswers, name: str) -> None:
        """Keep what answers; never a torch module, which `clean` would delete with its weights."""
        super().__init__()
        self.answers, self.name = answers, name
        self.device = str(answers.model.device)
        self.batch_size = answers.batch_size

    def __repr__(self) -> str:
        # lmms-eval keeps answers of a model in memory under this text.
        a = self.answers
        kind, condition = type(self).__name__, a.condition
        return f"{kind}({self.name}, {condition.digest}, leading_blank={a.leading_blank})"

    def loglikelihood(self, requests: list[Any]) -> list[GenerationResult]:
        """−log p of every choice, which lmms-eval minimises, and whether it would be written."""
        found = self.answers.choices(requests, self.task_dict)
        # As a text, because lmms-eval 0.7.3 makes a string of any pair that is not one.
        return [GenerationResult(text=_Pair(pair)) for pair in found]

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refused."""
        raise Unsupported("tasks of several rounds: embedlens answers one prompt at a time")


class SimpleHarnessModel(_HarnessModel):
    """Answers a context and its images; also multiple choice."""

    is_simple = True

    def generate_until(self, requests: list[Any]) -> list[str]:
        """What the model writes."""
        return self.answers.written(requests, self.task_dict)


class ChatHarnessModel(_HarnessModel):
    """Answers messages; lmms-eval gives it no multiple choice (``--force_simple`` does)."""

    is_simple = False

    def generate_until(self, requests: list[Any]) -> list[str]:
        """What the model writes."""
        return self.answers.chatted(requests, self.task_dict)


class _Pair(tuple[float, bool]):
    """A loss and whether greedy decoding writes the choice; only a cache asks it for text."""

    def strip(self) -> str:
        """Refused: what the cache of lmms-eval 0.7.3 gives back of it is no pair."""
        raise Unsupported("--use_cache cannot keep multiple choice: leave it out for these tasks")


def _own(device: str | None) -> str | None:
    """The GPU of this process where several (torchrun) share the work."""
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if alone or not torch.cuda.is_available() or device not in (None, "cuda"):
        return device
    return f"cuda:{os.environ['LOCAL_RANK']}"
