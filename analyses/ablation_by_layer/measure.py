"""What visual attention and FFN are worth: accuracy without them, layer by layer."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from ...lens.errors import InputError
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.selectors.selector_types import Selector
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..asked_questions import Questions, check_examples
from ..example import Example
from ..provenance import provenance
from ..statistics import (
    Estimate,
    Interval,
    Region,
    bootstrap_mean,
    evidence_of_many,
    paired_difference,
    paired_test,
    proportion,
)
from .answers import Answered, score_all
from .layer_sets import (
    CLEAN,
    OPERATIONS,
    SCOPES,
    WRONG_IMAGE,
    OperationName,
    Scope,
    Zeroing,
    wrong_images,
    zeroed,
)


@default_torch()
def ablation(
    model: VisualLM,
    examples: Sequence[Example],
    *,
    operations: Sequence[OperationName] = ("attention", "ffn"),
    scopes: Sequence[Scope] = ("single", "below", "above"),
    tokens: str | Selector = "visual",
    markers: Markers | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 12,
    margin: float = 0.05,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """Accuracy when attention or FFN output is not added at the visual positions.

    For chosen positions t, h_t ← h_t + 0 replaces h_t ← h_t + Attn(h)_t (or + FFN(h_t)); their
    keys and values stay readable. Scopes: ``single`` layer i; ``below``: all layers < m, m = 1
    … L; ``above``: all layers ≥ m, m = 0 … L−1. The operation follows "EmbedLens, CVPR 2026",
    section on redundancy of visual computation, without the special rule of its released code
    for layer 0; the scopes, the intervals and the wrong-image control are ours.

    Accuracy is greedy exact match: the model writes this answer and ends, by any of its own end
    tokens. Without given answers the same columns hold its agreement with the first tokens that
    the untouched model writes, compared as ids: no accuracy, and 1 for the untouched model.
    Controls: the untouched model (``clean``), and the untouched model shown another example's
    images, none of its own among them (``wrong image``): what the answers are worth without
    seeing. Intervals are over images (docs/statistics.md); differences to clean are paired. A
    question that is asked again about the same images counts once, in a task and in all.

    Args:
        model: The model.
        examples: Questions; all with an answer or all without, none with two.
        operations: Which outputs to zero.
        scopes: In which sets of layers.
        tokens: Where, in the selector language.
        markers: Classifies the tokens, for selectors such as ``dead``.
        batch_size: Examples per pass; each batch is encoded once.
        max_new_tokens: How much of the model's own answer counts, without given answers.
        margin: Loss of accuracy up to which the operation counts as redundant.
        seed: Of the wrong images and the intervals of log-probabilities.
        progress: Called with the conditions that are done.

    Returns:
        One row per condition × task (``all`` = every example): operation, scope, layer (i or
        m; missing for controls), layers, task, accuracy, accuracy_low, accuracy_high,
        difference (accuracy minus clean), difference_low, difference_high, logprob (of the
        answer, nats, mean over examples), logprob_low, logprob_high, difference_p (paired test
        of no difference, not corrected), agrees_p and differs_p (smallest p at which the loss is
        within the margin, and beyond it), decided_at_images (with how many images one of the two
        would be shown if all went on alike), examples, images.
        Tensors ``right`` and ``logprob``: ``[condition, example]``, NaN where not run, in the
        order of ``meta["conditions"]``.

    Raises:
        InputError: No examples, answers for some only, two answers to one question, an unknown
            operation or scope, a batch in which no token is selected, or an answer without tokens.
    """
    _check(examples, operations, scopes, batch_size)
    questions = Questions.of(examples)
    wrong = wrong_images(questions.contents, seed)
    conditions = [CLEAN, WRONG_IMAGE, *zeroed(operations, scopes, model.n_layers)]
    answered = score_all(
        model, questions, wrong, conditions, tokens, markers, batch_size, max_new_tokens, progress
    )
    meta = provenance(
        model,
        seed=seed,
        plan=" | ".join(f"{name} at {tokens}" for name in operations),
        tokens=str(tokens),
        batch_size=batch_size,
        examples=len(set(questions.asked)),
        images=questions.images(questions.first("all")),
        margin=margin,
        reference=questions.reference,
        answers=answered.answers,
        prompts=[example.prompt for example in examples],
        tasks=questions.tasks,
        conditions=[[c.operation, c.scope, c.layer] for c in conditions],
        unmatched_wrong_images=wrong.count(None),
    )
    tensors = {
        "right": torch.from_numpy(answered.right).float(),
        "logprob": torch.from_numpy(answered.logprob).float(),
    }
    frame = _frame(conditions, answered, questions, margin, seed)
    return Result("ablation", frame, tensors, meta)


def _check(
    examples: Sequence[Example], operations: Sequence[str], scopes: Sequence[str], batch_size: int
) -> None:
    check_examples(examples, batch_size)
    for what, given, known in (
        ("operation", operations, tuple(OPERATIONS)),
        ("scope", scopes, SCOPES),
    ):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"no {what} {unknown[0]!r}; there are {', '.join(known)}")


def _interval(estimate: Callable[..., Estimate]) -> Interval:
    return lambda level, times: estimate(level=level, times=times)


def _frame(
    conditions: Sequence[Zeroing],
    answered: Answered,
    questions: Questions,
    margin: float,
    seed: int,
) -> pd.DataFrame:
    """One row per condition × task; differences are paired with the untouched model."""
    right, logprob = answered.right.T, answered.logprob.T
    clean = np.broadcast_to(right[:, [conditions.index(CLEAN)]], right.shape)
    rows = []
    for task in ("all", *questions.tasks):
        here = questions.first(task)
        groups, n_images = questions.groups(here), questions.images(here)
        difference = partial(paired_difference, right[here], clean[here], groups)
        measures = {
            "accuracy": proportion(right[here], groups),
            "difference": difference(),
            "logprob": bootstrap_mean(logprob[here], groups, bounds=None, seed=seed),
        }
        p = paired_test((right - clean)[here], groups, seed=seed)
        found = evidence_of_many(
            _interval(difference),
            Region(low=-margin),
            np.full(len(conditions), float(len(set(groups.tolist())))),
        )
        for c, condition in enumerate(conditions):
            row: dict[str, object] = {
                "operation": condition.operation,
                "scope": condition.scope,
                "layer": condition.layer,
                "layers": condition.span,
                "task": task,
            }
            for name, estimate in measures.items():
                row |= estimate.row(c, name=name)
            row |= {"difference_p": float(p[c]), **found[c].row()}
            rows.append({**row, "examples": int(here.sum()), "images": n_images})
    frame = pd.DataFrame(rows)
    frame["layer"] = frame["layer"].astype("Int64")
    return frame
