"""Many plans on one batch: compile each, run them in shared passes, give each its own result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch

from ...errors import InputError
from ...inputs.batch import Batch
from ...opening.wrapping import need_processor
from ...progress import Progress, silent
from ...torch_settings import default_torch
from ..captures import Tokens
from ..forward import Kept, Layers, Output, Request, as_run, run_request, scored_among
from ..one_at_a_time import alone
from ..plan_protocol import Intervention
from ..run import Capture, Run, Scores
from ..scoring import Answers, AnswerTokens, as_scores, score_request
from .conditions import compile_conditions
from .shared_passes import SharedPasses
from .stacked_remote_passes import StackedPasses

T = TypeVar("T")
Plans = Sequence[Intervention | None]


@default_torch()
@torch.no_grad()
def run_many(
    model: Any,
    batch: Batch,
    plans: Plans,
    *,
    capture: Capture | Collection[Capture] = (),
    layers: Layers = "all",
    tokens: Tokens = "visual",
    queries: Tokens = "last",
    keys: Tokens = "all",
    logits: Kept = "last",
    at_once: int | None = None,
    max_memory: int | None = None,
    remote: bool | str = False,
    progress: Progress = silent,
) -> list[Run]:
    """One run per plan on the same batch, each with the numbers of its own :meth:`run`.

    What the runs have in common is computed once: the vision tower and all else in front of
    the decoder; every beginning that several plans share; of the layer in which they part what
    stands before that; of a pass that differs from the untouched one in a few rows all other
    rows; and of the last layer only the rows that are read. A layer whose inside is kept (attention
    weights, values, heads, neurons) is computed for all rows. Remote passes take several plans
    at once, stacked along the batch. All of this is compared with whole layers and single runs
    when a model does it for the first time, and left out where the numbers differ.

    Args:
        model: The VisualLM whose method this is.
        batch: The inputs.
        plans: What to change in each run; None leaves the model untouched.
        capture: As for :meth:`run`, like all down to ``logits``.
        layers: Layers to keep.
        tokens: Tokens to keep; not by their score, which every plan changes.
        queries: Tokens whose attention weights to keep.
        keys: Tokens to which.
        logits: Which positions' logits to keep.
        at_once: Most plans in one remote pass, which bounds the server's memory. None takes as
            many as have 16384 tokens, and at least one. Here every pass is of one plan.
        max_memory: Most bytes of states kept for later plans, what was captured in front of where
            they start among them; what does not fit is computed again. None is 2 GiB.
        remote: As in :meth:`trace`; the tower then runs once per pass.
        progress: Called with what is being done, the plans done, and the plans in all.

    Raises:
        InputError: A site or layer that does not exist, a plan that cannot be carried out,
            ``at_once`` below 1, ``max_memory`` below 0, or tokens to keep by their score.
    """
    if scored := scored_among(tokens, queries, keys):
        raise InputError(
            f"run_many: {scored[0]} is other tokens under every plan: call run(batch, plan, ...) "
            "for each"
        )
    request = run_request(model, batch, capture, layers, tokens, queries, keys, logits, remote)

    def result(output: Output, index: int) -> Run:
        return as_run(model, batch, plans[index], request, output, logits)

    return _results(model, batch, plans, request, result, at_once, max_memory, progress)


@default_torch()
@torch.no_grad()
def score_many(
    model: Any,
    batch: Batch,
    answers: Answers,
    plans: Plans,
    *,
    end: bool = False,
    first: bool = False,
    at_once: int | None = None,
    max_memory: int | None = None,
    remote: bool | str = False,
    progress: Progress = silent,
) -> list[Scores]:
    """The answers' probabilities under each plan, with the numbers of :meth:`score`.

    Args:
        model: The VisualLM whose method this is.
        batch: The prompts.
        answers: One per sample, as for :meth:`score`.
        plans: What to change in each run; None leaves the model untouched.
        end: Whether the end belongs to the answer, as for :meth:`score`.
        first: Whether to keep what the model would say first, as for :meth:`score`.
        at_once: As for :meth:`run_many`, where the sharing of work is described.
        max_memory: As for :meth:`run_many`.
        remote: As in :meth:`trace`.
        progress: Called with what is being done, the plans done, and the plans in all.

    Raises:
        InputError: As for :meth:`score` and :meth:`run_many`.
        Unsupported: The prompt's tokens would see the answer.
    """
    tokenizer = need_processor(model.processor).tokenizer
    answered = AnswerTokens.of(tokenizer, answers, len(batch), end=end, first=first)
    request = score_request(model, batch, answered, remote)

    def result(output: Output, index: int) -> Scores:
        return as_scores(model, batch, answered, plans[index], request, output)

    return _results(model, batch, plans, request, result, at_once, max_memory, progress)


def _results(
    model: Any,
    batch: Batch,
    plans: Plans,
    request: Request,
    result: Callable[[Output, int], T],
    at_once: int | None,
    max_memory: int | None,
    progress: Progress,
) -> list[T]:
    """The result of every plan, in their order; made as passes end, so that outputs are let go."""
    if at_once is not None and at_once < 1:
        raise InputError(f"at_once={at_once}: at least one condition per pass")
    if max_memory is not None and max_memory < 0:
        raise InputError(f"max_memory={max_memory}: a number of bytes")
    results: dict[int, T] = {}
    with alone(model.hf):
        conditions = compile_conditions(model, batch, plans, request)
        passes: StackedPasses | SharedPasses
        if request.during.remote is False:
            passes = SharedPasses(model, request, max_memory)
        else:
            passes = StackedPasses(model, request, at_once)
        for group, outputs in passes.run(conditions):
            for condition, output in zip(group, outputs, strict=True):
                results[condition.index] = result(output, condition.index)
            progress("running conditions", len(results), len(plans))
    return [results[index] for index in range(len(plans))]
