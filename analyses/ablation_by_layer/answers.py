"""Every example's answer scored under every condition, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ...lens import Scores
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.opening.wrapping import need_processor
from ...lens.progress import Progress
from ...lens.selectors.selector_types import Selector
from ..asked_questions import Questions
from .layer_sets import WRONG_IMAGE, Zeroing

DOING = "zeroing attention and FFN"


@dataclass(frozen=True, eq=False)
class Answered:
    """What counts as right, and what each condition gave; NaN where it could not be run."""

    answers: list[str]
    right: Float[np.ndarray, "condition example"]
    logprob: Float[np.ndarray, "condition example"]


def score_all(
    model: VisualLM,
    questions: Questions,
    wrong: Sequence[int | None],
    conditions: Sequence[Zeroing],
    tokens: str | Selector,
    markers: Markers | None,
    batch_size: int,
    max_new_tokens: int,
    progress: Progress,
) -> Answered:
    """Score all answers under all conditions: every plan on a batch, then its wrong images.

    Conditions that zero the same are run once. ``wrong`` has for each example another one with
    other images, if there is one.
    """
    n, end = len(questions.examples), not questions.own_answers
    plans = {c.same_run: c.plan(tokens) for c in conditions if c is not WRONG_IMAGE}
    row = {run: i for i, run in enumerate([*plans, WRONG_IMAGE.same_run])}
    right, logprob = (np.full((len(row), n), np.nan) for _ in range(2))
    answers: list[str | list[int]] = []
    done, total = 0, -(-n // batch_size) * len(row)

    def put(run: tuple[object, ...], part: Sequence[int], scores: Scores) -> None:
        right[row[run], part] = scores.greedy.double().cpu().numpy()
        logprob[row[run], part] = scores.logprob.double().cpu().numpy()

    def told(before: int) -> Progress:
        return lambda _, scored, __: progress(DOING, before + scored, total)

    for part, batch in questions.batches(model, batch_size, markers):
        given = _answers(model, questions, part, batch, max_new_tokens)
        answers += given
        many = model.score_many(batch, given, [*plans.values()], end=end, progress=told(done))
        for run, scores in zip(plans, many, strict=True):
            put(run, part, scores)
        donors = {i: other for i in part if (other := wrong[i]) is not None}
        if donors:
            shown = questions.encode(model, [*donors], [*donors.values()])
            scores = model.score(shown, [answers[i] for i in donors], end=end)
            put(WRONG_IMAGE.same_run, [*donors], scores)
        done += len(row)
        progress(DOING, done, total)
    rows = [row[condition.same_run] for condition in conditions]
    tokenizer = need_processor(model.processor).tokenizer
    said = [a if isinstance(a, str) else str(tokenizer.decode(a)).strip() for a in answers]
    return Answered(said, right[rows], logprob[rows])


def _answers(
    model: VisualLM, questions: Questions, part: Sequence[int], batch: Batch, length: int
) -> list[str] | list[list[int]]:
    """What counts as right in a part of the examples: text, or the ids the model wrote.

    Its own answer is never compared as text: what a byte-level tokenizer wrote is another
    answer once it is decoded, stripped and tokenised again (agreement with itself: 0 %).
    """
    if not questions.own_answers:
        return [questions.examples[i].answer or "" for i in part]
    written = model.generate_ids(batch, max_new_tokens=length, do_sample=False, num_beams=1)
    if [] in written:
        prompt = questions.examples[part[written.index([])]].prompt
        raise InputError(
            f"the model answers nothing to {prompt!r}: ask another question or give the "
            "answer to score"
        )
    return written
