"""Several plans on the same questions: what each changes, and whether more than its control."""

from collections.abc import Mapping, Sequence

import torch

from ...interventions import Plan
from ...lens.errors import InputError
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..asked_questions import Questions, check_examples
from ..example import Example
from ..provenance import provenance
from .named_plans import Controls, NamedPlans
from .outcomes import Label, outcomes
from .paired_table import METRICS, paired_table


@default_torch()
def compare(
    model: VisualLM,
    examples: Sequence[Example],
    plans: Mapping[str, Plan | None],
    *,
    metrics: Sequence[str] = ("accuracy", "logprob", "kl", "flips"),
    controls: Controls | None = None,
    markers: Markers | None = None,
    label: Label | None = None,
    margins: Mapping[str, float] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    r"""What each of several named plans changes in the answers to the same questions.

    Measures, each by example and then averaged: ``accuracy``, whether greedy decoding writes
    exactly the answer and ends; ``logprob`` of the answer, in nats, its end included; ``kl``, of
    the next token's distributions at the answer's first position, $\sum_v p_v \log (p_v / q_v)$
    with $p$ of the untouched model and $q$ under the plan, in nats; ``flips``, whether greedy
    decoding writes other ids than it does without a plan. Without given answers the untouched
    model's own are taken, as ids: accuracy is then agreement with it.

    Each plan is compared with the untouched model on the same examples, and with its control where
    it has one: a plan that does as much to tokens drawn at random (`Plan.control`). Several
    controls are averaged example by example, so that seeds are no observations. Intervals are over
    images (docs/statistics.md). A verdict says whether a change lies within the margin (``agrees``
    with the untouched model), beyond it (``differs``), or neither is shown. All conditions and
    measures are corrected together (Holm), and so are those of all tasks. That a divergence or a
    share of other answers is above 0 is no finding and not tested; that it is above its control's
    is.

    Args:
        model: The model.
        examples: Questions; all with an answer or all without.
        plans: What to change, by the name of the condition.
        metrics: What is measured; only what is asked for is computed.
        controls: Of a condition the name of another, a plan or several plans (seeds).
        markers: Classifies the tokens, for selectors such as ``dead``.
        label: Gives a batch sets of tokens or classes of its own: called with it and the numbers of
            its examples, returns it with them (``batch.with_tokens(object=mask)``).
        margins: By measure the change that still counts as none, where another than accuracy .05,
            logprob .1, kl .1, flips .05.
        batch_size: Examples per batch; plans share what they have in common on it.
        max_new_tokens: How much of the untouched model's answer counts.
        seed: Of the intervals and tests.
        progress: Called with the plans that are done.

    Returns:
        One row per condition × metric × task (``all``, and each task where there are several):
        value (mean; value_low, value_high), difference to the untouched model (_low, _high), p
        (paired, two-sided), agrees_p and differs_p, decided_at_images, control (its mean), beyond
        (difference to the control; _low, _high), control_p, examples, images, p_holm,
        verdict_p_holm, control_p_holm, verdict. The untouched model has a row of its own where it
        has a value. Tensors: every metric as ``[plan, example]``; ``meta["plans"]`` says which
        plan each condition and control has.

    Raises:
        InputError: No examples or plans, answers for some only, an unknown measure or control, or
            a plan that cannot be carried out, by its name.
    """
    check_examples(examples, batch_size)
    if unknown := [name for name in (*metrics, *(margins or {})) if name not in METRICS]:
        raise InputError(f"no measure {unknown[0]!r}; there are {', '.join(METRICS)}")
    if not metrics:
        raise InputError(f"nothing to measure: there are {', '.join(METRICS)}")
    named = NamedPlans.of_names(plans, controls)
    questions = Questions.of(examples)
    found = outcomes(
        model,
        questions,
        named,
        list(dict.fromkeys(metrics)),
        label=label,
        markers=markers,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    limits = {name: metric.margin for name, metric in METRICS.items()} | dict(margins or {})
    frame = paired_table(found.values, named, questions, limits, seed)
    everyone = questions.first("all")
    meta = provenance(
        model,
        seed=seed,
        plan="\n".join(f"{name}:\n{plan}" for name, plan in plans.items()),
        batch_size=batch_size,
        examples=int(everyone.sum()),
        images=questions.images(everyone),
        margins={name: limits[name] for name in found.values},
        reference=questions.reference,
        answers=found.answers,
        prompts=[example.prompt for example in examples],
        tasks=questions.tasks,
        plans=dict(named.of),
        controls={name: list(numbers) for name, numbers in named.controls.items()},
        texts=["" if plan is None else plan.to_yaml() for plan in named.plans],
    )
    tensors = {name: torch.from_numpy(values).float() for name, values in found.values.items()}
    return Result("comparison", frame, tensors, meta)
