"""What an ablation says: what accuracy loses without attention and without the FFN."""

from collections.abc import Mapping
from math import isnan
from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..claim import ABSTRACT, Claim, Verdict
from ..numbers_in_words import difference, listing, share
from ..rows import one, select
from .answers import DOING
from .figure import draw_ablation
from .measure import ablation

_OPERATIONS = {"attention": "attention", "ffn": "the FFN"}
_ENOUGH_QUESTIONS = 10  # of a task, before a sentence is said about it
_MARGIN = 0.05  # accuracy: what counts as no difference, given an interval inside it


def _findings(result: Result) -> list[str]:
    rows = select(result.frame, task="all")
    clean, wrong = one(rows, scope="clean"), one(rows, scope="wrong image")
    said = [_everywhere(rows)] if (rows["scope"] == "above").any() else []
    said.append(
        f"The untouched model gives {share(clean, 'accuracy')} of the {clean['examples']} expected "
        "answers; "
        + (
            "there was no second image for a wrong-image control."
            if isnan(wrong["accuracy"])
            else f"shown a wrong image, {share(wrong, 'accuracy')}."
        )
    )
    for operation, name in _OPERATIONS.items():
        single = select(rows, operation=operation, scope="single")
        if not single.empty:
            worst = single.sort_values("difference", kind="stable")["layer"].iloc[0]
            row = one(single, layer=worst)
            said.append(
                f"The single layer that needs {name} most is layer {worst}: {_effect(row)}."
                if row["difference_high"] < 0
                else f"No single layer clearly needs {name}: the largest change, at layer {worst}, "
                f"is {difference(row)}."
            )
    return said + _tasks(result)


def _everywhere(rows: pd.DataFrame) -> str:
    parts = [
        f"without {name} {_effect(one(found))}"
        for operation, name in _OPERATIONS.items()
        if len(found := _in_any_layer(rows, operation))
    ]
    return f"Zeroed at the visual positions of all layers, accuracy changes: {'; '.join(parts)}."


def _in_any_layer(rows: pd.DataFrame, operation: str) -> pd.DataFrame:
    """The rows of an operation in all layers at once."""
    return select(rows, operation=operation, scope="above", layer=0)


def _effect(row: Mapping[str, Any]) -> str:
    low, high = row["difference_low"], row["difference_high"]
    verdict = (
        "a loss" if high < 0 else "a gain" if low > 0 else "no clear change" if low == low else ""
    )
    return f"{difference(row)}{', ' + verdict if verdict else ''}"


def _tasks(result: Result) -> list[str]:
    """Which tasks lose most without attention, and without the FFN, anywhere."""
    names = [task for task in result.meta["tasks"] if len(result.meta["tasks"]) > 1]
    said = []
    for operation, name in _OPERATIONS.items():
        rows = _in_any_layer(result.frame, operation)
        rows = rows[rows["task"].isin(names) & (rows["examples"] >= _ENOUGH_QUESTIONS)]
        lost = rows[rows["difference_high"] < 0].sort_values("difference", kind="stable")
        if not lost.empty:
            losers = listing(
                f"{row['task']} ({difference(row)}, {row['examples']} questions)"
                for row in (one(lost, task=task) for task in lost["task"])
            )
            said.append(
                f"Tasks of at least {_ENOUGH_QUESTIONS} questions that lose without {name} "
                f"(intervals not corrected for the number of tasks): {losers}."
            )
    return said


def _claims(result: Result) -> list[Claim]:
    rows = select(result.frame, task="all")
    return [
        Claim(
            f"Visual {name} inside the language model is redundant for most tasks.",
            ABSTRACT,
            f"{difference(one(found))} without it in any layer",
            _redundant(one(found)),
        )
        for operation, name in (("attention", "attention"), ("ffn", "FFN"))
        if len(found := _in_any_layer(rows, operation))
    ]


def _redundant(row: Mapping[str, Any]) -> Verdict:
    if row["difference_low"] >= -_MARGIN:
        return "agrees"
    return "differs" if row["difference_high"] < -_MARGIN else "unclear"


def _data(result: Result) -> str:
    return f"Answers are compared with {result.meta['reference']}."


ABLATION = Analysis(
    name="ablation",
    run=lambda m: ablation(
        m.model, m.examples, batch_size=m.examples_at_once, seed=m.seed, progress=m.progress
    ),
    figure=draw_ablation,
    doing=DOING,
    order=60,
    heading="What is visual attention and FFN worth?",
    method="What attention or the FFN would add to the residual stream is set to zero at the "
    "visual positions, in some layers; their keys and values stay readable. An answer counts when "
    "greedy decoding writes exactly it.",
    caption="Exact matches when the output of attention (top) or FFN (bottom) is zeroed at visual "
    "positions. Bands are 95 % intervals over images; the lines show the untouched model with the "
    "right and with a wrong image.",
    findings=_findings,
    claims=_claims,
    data=_data,
    claims_order=40,
)
register(ABLATION)
