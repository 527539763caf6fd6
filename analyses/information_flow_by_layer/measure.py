"""Attention blocked between parts of the prompt, in windows of layers: where answers need it.

Hiding the image from the question in late layers does nothing if nobody reads the question behind
them, so that where a flow matters is where it is used as well as where it is.
"""

from collections.abc import Mapping, Sequence
from math import inf

import numpy as np
from jaxtyping import Bool

from ...interventions import BlockAttention, Plan
from ...lens.errors import InputError
from ...lens.inputs.batch import Batch
from ...lens.markers.markers import Markers
from ...lens.model import VisualLM
from ...lens.progress import Progress, silent
from ...lens.selectors.places import Pixels
from ...lens.torch_settings import default_torch
from ..analysis import Result
from ..asked_questions import Questions, check_examples
from ..comparison_of_plans.named_plans import UNTOUCHED
from ..comparison_of_plans.outcomes import Label
from ..example import Example
from ..statistics import bootstrap_mean
from ..sweep_over_layers.compared_conditions import compare_conditions
from ..sweep_over_layers.condition import (
    ALL_VISUAL,
    AskedTokens,
    PlacedPlan,
    checked_tokens,
    some_layers,
    span,
    windows,
)

Box = tuple[int, int, int, int]
Flows = Mapping[str, tuple[str, str]]

_ASKED = "question & ~last"
FLOWS = {
    "image to question": (ALL_VISUAL, _ASKED),
    "question to last": (_ASKED, "last"),
    "image to last": (ALL_VISUAL, "last"),
}
"""By name what is hidden, and from whom."""

OBJECT_FLOWS = {
    "object to question": ("object", _ASKED),
    "object to last": ("object", "last"),
    "rest to question": (f"{ALL_VISUAL} & ~object", _ASKED),
    "rest to last": (f"{ALL_VISUAL} & ~object", "last"),
}
"""The same of the tokens of a box and of the rest of the image."""


@default_torch()
def information_flow(
    model: VisualLM,
    examples: Sequence[Example],
    *,
    flows: Flows | None = None,
    objects: Sequence[Box] | None = None,
    width: int | None = None,
    places: int = 8,
    markers: Markers | None = None,
    metrics: Sequence[str] = ("accuracy", "logprob", "kl"),
    seeds: int = 1,
    margins: Mapping[str, float] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """What answers lose where one part of the prompt cannot see another, by window of layers.

    In ``width`` neighbouring layers the attention of some tokens to others is blocked before the
    softmax (`BlockAttention`): of the question to the image, of the last token (and of every token
    of the answer) to the question, and of the last token to the image. With ``objects`` also of
    both to the tokens of a box and to the rest of the image. The operation, the flows and the
    change of the answer's probability are those of cross-modal information flow, docs/method.md
    (e), which scores the answer's first token and uses windows of 9 layers; scoring the whole
    answer, controls, intervals and verdicts are ours.

    A blocked window says where a flow is needed. It does not say that nothing else flows there:
    what other tokens took along before is still read from them.

    Args:
        model: The model.
        examples: Questions; all with an answer or all without.
        flows: By name what is hidden and from whom, two selectors; the three named above (and, with
            ``objects``, the four of the box) when None. ``object`` means the box.
        objects: For each example a box (left, top, right, bottom) in pixels of the original image.
            Tokens whose centre lies in it are the object's, or, if there is none, those it meets.
        width: Layers of a window; a quarter of the model's when None.
        places: At most so many windows, evenly spread, and the last.
        markers: Classify the tokens, for selectors such as ``alive``.
        metrics: As for `compare`.
        seeds: Draws of the matched control, which are averaged: as many random visual tokens
            hidden from the same readers. What is all visual tokens, or not visual, has none.
        margins: As for `compare`: what counts as no change.
        batch_size: Examples per batch.
        max_new_tokens: How much of the untouched model's answer counts.
        seed: Of the intervals and tests; draws of controls are numbered from 0.
        progress: Called with the plans that are done.

    Returns:
        The table of `compare`, with the columns flow, hidden, reader (the selectors), layer (the
        window's first) and layers (as text) of every condition in front. Rows of ``logprob`` have
        the relative change of the answer's probability p, mean of p'/p - 1 over examples, as
        relative, relative_low and relative_high. Each measure of one flow is corrected by itself
        (Holm), and so are its tasks.

    Raises:
        InputError: As `compare`; a window that does not fit, tokens that some batch lacks, not one
            box for each example, or a box without tokens.
        Unsupported: A model whose attention cannot be masked, or boxes where it is not known which
            pixels a token shows.
    """
    check_examples(examples, batch_size)
    n = model.n_layers
    width = max(1, n // 4) if width is None else width
    questions = Questions.of(examples)
    asked = AskedTokens.of(model, questions, markers, batch_size, _boxes(objects, len(examples)))
    if flows is None:
        flows = FLOWS if objects is None else {**FLOWS, **OBJECT_FLOWS}
    spans = [*windows(n, width, some_layers(n, places))]
    conditions = []
    for name, (hidden, reader) in flows.items():
        checked_tokens(asked, [hidden, reader])
        draws = 0 if asked.count(f"({hidden}) & ~{ALL_VISUAL}").any() else seeds
        for layers in spans:
            plan = Plan(BlockAttention(queries=reader, keys=hidden, layers=[*layers]))
            about: dict[str, str | float | None] = {
                "flow": name,
                "hidden": hidden,
                "reader": reader,
                "layer": layers[0],
                "layers": span(layers),
            }
            conditions.append(PlacedPlan(plan, about, asked.controls(plan, hidden, draws)))
    found = compare_conditions(
        "information_flow",
        model,
        examples,
        conditions,
        asked,
        family=("flow",),
        metrics=metrics,
        margins=margins,
        max_new_tokens=max_new_tokens,
        seed=seed,
        progress=progress,
        width=width,
        shares={name: asked.share(hidden) for name, (hidden, _) in flows.items()},
    )
    _tell_probability(found, questions, seed)
    return found


def _boxes(objects: Sequence[Box] | None, examples: int) -> Label | None:
    """Gives a batch the tokens of every example's box, as ``object``."""
    if objects is None:
        return None
    if len(objects) != examples:
        raise InputError(f"{len(objects)} boxes for {examples} examples: give one for each")
    boxes = [tuple(box) for box in objects]

    def label(batch: Batch, part: Sequence[int]) -> Batch:
        mask = np.zeros(batch.real.shape, bool)
        for row, example in enumerate(part):
            mask[row] = _tokens_of(batch, row, boxes[example], example)
        return batch.with_tokens(object=mask)

    return label


def _tokens_of(
    batch: Batch, row: int, box: tuple[int, ...], example: int
) -> Bool[np.ndarray, " token"]:
    """The tokens of a box in one sample of a batch."""
    if len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
        raise InputError(f"objects[{example}] = {box}: (left, top, right, bottom), in pixels")
    left, top, right, bottom = box
    for rule in ("center", "meets"):
        mine: Bool[np.ndarray, " token"] = (
            Pixels((left, right), (top, bottom), rule).select(batch).prompt[row]
        )
        if mine.any():
            return mine
    raise InputError(f"objects[{example}] = {box}: no visual token shows a part of it")


def _tell_probability(result: Result, questions: Questions, seed: int) -> None:
    """Add the relative change of the answer's probability to the rows of its logarithm."""
    if "logprob" not in result.tensors:
        return
    frame, plans = result.frame, result.meta["plans"]
    values = result.tensors["logprob"].double().numpy()
    change = np.expm1(values - values[0])  # plan 0 is the untouched model
    columns = ["relative", "relative_low", "relative_high"]
    frame[columns] = np.nan
    rows = frame[(frame["metric"] == "logprob") & (frame["condition"] != UNTOUCHED)]
    for task, mine in rows.groupby("task", sort=False):
        chosen = questions.first(str(task))
        numbers = [plans[name] for name in mine["condition"]]
        told = bootstrap_mean(
            change[numbers][:, chosen].T,
            questions.groups(chosen),
            bounds=(-1.0, inf),
            seed=seed,
        )
        frame.loc[mine.index, columns] = np.stack([told.value, told.low, told.high], 1)
