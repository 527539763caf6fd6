"""Several plans on tasks of lmms-eval, in one process and with one model in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ...interventions import Plan
from ...lens.errors import InputError
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from .harness_answers import HarnessAnswers
from .harness_condition import HarnessCondition


@dataclass(frozen=True, eq=False)
class TaskScores:
    """What lmms-eval made of a model under several plans.

    Attributes:
        scores: One row per plan, task and metric: plan, digest, task, metric, value, stderr (the
            harness's own), n (documents).
        documents: One row per plan, task, document and metric: plan, task, document, answer (what
            the harness made of it), metric, value (missing where it is no number).
        versions: Of lmms-eval and of each task.
    """

    scores: pd.DataFrame
    documents: pd.DataFrame
    versions: Mapping[str, Any]

    def __repr__(self) -> str:
        plans, tasks = (self.scores[name].nunique() for name in ("plan", "task"))
        return f"TaskScores({plans} plans on {tasks} tasks; scores, documents, versions)"


def plans_on_tasks(
    model: VisualLM,
    plans: Mapping[str, Plan | None],
    tasks: Sequence[str],
    *,
    folder: str | Path | None = None,
    markers: Markers | None = None,
    nearest_words: int | None = None,
    chat: bool = False,
    batch_size: int = 16,
    leading_blank: bool = False,
    limit: int | None = None,
    progress: Progress = silent,
) -> TaskScores:
    """Evaluate plans on tasks of lmms-eval 0.7.3, one after the other.

    Random states are as before afterwards; the harness seeds them anew for every plan.

    Args:
        model: The model.
        plans: By name; None is the untouched model.
        tasks: Names of tasks.
        folder: Where tasks of your own lie.
        markers: Tell classes of tokens apart, for plans that name them.
        nearest_words: How many nearest words ``near[id]`` looks at.
        chat: Whether tasks are asked as conversations; multiple choice is not.
        batch_size: Requests in one pass.
        leading_blank: As in `HarnessAnswers`.
        limit: Documents of each task; all without.
        progress: Called before every plan.

    Raises:
        InputError: lmms-eval is not installed, it knows no such task, or there is no plan.
    """
    evaluator, models, manager = _installed()
    if not plans:
        raise InputError("give plans by name, for instance {'clean': None}")
    known = manager("ERROR", include_path=None if folder is None else str(folder))
    if unknown := [task for task in tasks if task not in known.all_tasks]:
        raise InputError(
            f"lmms-eval has no task {unknown[0]!r}: give its name, and as folder= where it lies"
        )
    conditions = {
        name: HarnessCondition(plan, markers, nearest_words) for name, plan in plans.items()
    }
    kind = models.ChatHarnessModel if chat else models.SimpleHarnessModel
    scores, documents = [], []
    versions: dict[str, Any] = {}
    for done, (name, condition) in enumerate(conditions.items()):
        progress(f"evaluating {name}", done, len(conditions))
        answers = HarnessAnswers(model, condition, batch_size, leading_blank)
        with _kept_random_states():
            found = evaluator.simple_evaluate(
                model=kind.of(answers, "a model in memory"),
                tasks=list(tasks),
                task_manager=known,
                limit=limit,
                process_docs_parallel=1,
                verbosity="ERROR",
            )
        scores += list(_scores(found, name, condition))
        documents += list(_documents(found, name))
        versions |= {"lmms-eval": found["lmms_eval_version"], **found["versions"]}
    return TaskScores(pd.DataFrame(scores), pd.DataFrame(documents), versions)


def _installed() -> tuple[Any, Any, Any]:
    try:
        from lmms_eval import evaluator  # noqa: PLC0415 an optional dependency
        from lmms_eval.tasks import TaskManager  # noqa: PLC0415 an optional dependency
    except ImportError as error:
        raise InputError(
            f"this needs lmms-eval 0.7.3, docs/how_to/benchmarks.md says how to get it: {error}"
        ) from None
    # Our models inherit from lmms-eval's.
    return evaluator, import_module(".harness_models", __package__), TaskManager


@contextmanager
def _kept_random_states() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 kept
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 as it was


def _metrics(found: Mapping[str, Any], task: str) -> dict[str, tuple[str, Any]]:
    """Per metric the name of its filter and its value."""
    parts = {key: key.split(",") for key in found["results"][task] if "," in key}
    return {
        name: (kind, found["results"][task][key])
        for key, (name, kind) in parts.items()
        if "_stderr" not in name
    }


def _scores(
    found: Mapping[str, Any], plan: str, condition: HarnessCondition
) -> Iterator[dict[str, Any]]:
    for task in found["samples"]:
        for metric, (kind, value) in _metrics(found, task).items():
            yield {
                "plan": plan,
                "digest": condition.digest,
                "task": task,
                "metric": metric,
                "value": _number(value),
                "stderr": _number(found["results"][task].get(f"{metric}_stderr,{kind}")),
                "n": len(found["samples"][task]),
            }


def _documents(found: Mapping[str, Any], plan: str) -> Iterator[dict[str, Any]]:
    for task, samples in found["samples"].items():
        for sample in samples:
            answer = sample["filtered_resps"]
            told = {"plan": plan, "task": task, "document": sample["doc_id"]}
            told["answer"] = str(answer[0] if len(answer) == 1 else answer)
            for metric in _metrics(found, task):
                yield {**told, "metric": metric, "value": _number(sample.get(metric))}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Real | np.number) else float("nan")
