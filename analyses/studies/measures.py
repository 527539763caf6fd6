"""What a study can measure of an answer, each by its name: one entry of `MEASURES`, or a function.

A measure reads one kind of observation: how probable the right answer is, how probable each of
several choices is, or what the model writes. Every kind is observed once for all its measures.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from math import exp, isnan
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...lens.errors import InputError
from ..analysis import registered
from .items import Item
from .study_file import MeasureSpec
from .written_answers import anls, box_overlap, exact_match, vqa_accuracy

Kind = Literal["answer", "choices", "written"]
KINDS: tuple[Kind, ...] = ("answer", "choices", "written")
Observation = Mapping[str, Any]


@dataclass(frozen=True)
class AnswerMeasure:
    """What is measured of one answer.

    Attributes:
        name: In the file and in tables.
        kind: The observation it reads.
        score: One number from an observation and its item.
        method: How it comes about, in a sentence.
        title: In headings and along axes, with its unit.
        share: Whether it is 0 or 1, so that its mean is a share.
        bounds: What it cannot pass; None for none.
        version: Changed when the same observation gets another number.
    """

    name: str
    kind: Kind
    score: Callable[[Observation, Item], float]
    method: str
    title: str
    share: bool = False
    bounds: tuple[float, float] | None = None
    version: str = "1"

    @property
    def said(self) -> dict[str, Any]:
        """All about it but its function, in plain values."""
        bounds = None if self.bounds is None else list(self.bounds)
        told = {"kind": self.kind, "method": self.method, "share": self.share}
        return {**told, "bounds": bounds, "version": self.version}

    def check(self, item: Item) -> str | None:
        """What an item lacks for it; None if nothing."""
        if not item.answers:
            return "has no answer"
        if self.kind == "choices" and len(item.choices) < 2:
            return "has no choices"
        return None


def _right_choice(key: str) -> Callable[[Observation, Item], float]:
    def score(seen: Observation, item: Item) -> float:
        values = np.array(seen["logprob"], dtype=float)
        if key == "token":
            values /= np.array(seen["tokens"])
        best = int(values.argmax())
        # A tie is no answer.
        alone = int((values == values[best]).sum()) == 1
        return float(alone and item.choices[best] in item.answers)

    return score


def _of_text(score: Callable[[str, Sequence[str]], float]) -> Callable[[Observation, Item], float]:
    return lambda seen, item: score(seen["text"], item.answers)


_UNIT = (0.0, 1.0)
_KNOWN = (
    AnswerMeasure(
        "accuracy",
        "answer",
        lambda seen, _: float(seen["greedy"]),
        "Whether greedy decoding writes exactly the right answer and ends.",
        "Accuracy",
        share=True,
        bounds=_UNIT,
    ),
    AnswerMeasure(
        "logprob",
        "answer",
        lambda seen, _: float(seen["logprob"]),
        "Log-probability of the right answer with its end, in nats.",
        "Log-probability (nats)",
    ),
    AnswerMeasure(
        "probability",
        "answer",
        lambda seen, _: exp(seen["logprob"]),
        "Probability of the right answer with its end.",
        "Probability",
        bounds=_UNIT,
    ),
    AnswerMeasure(
        "choice",
        "choices",
        _right_choice("sum"),
        "Whether the right choice is the most probable one, by the sum over its tokens.",
        "Right choice",
        share=True,
        bounds=_UNIT,
    ),
    AnswerMeasure(
        "choice_per_token",
        "choices",
        _right_choice("token"),
        "Whether the right choice is the most probable one, by the mean over its tokens.",
        "Right choice, per token",
        share=True,
        bounds=_UNIT,
    ),
    AnswerMeasure(
        "exact_match",
        "written",
        _of_text(exact_match),
        "Whether the written answer is a right one, case, punctuation and articles ignored.",
        "Exact match",
        share=True,
        bounds=_UNIT,
    ),
    AnswerMeasure(
        "vqa",
        "written",
        _of_text(vqa_accuracy),
        "VQA accuracy of the written answer.",
        "VQA accuracy",
        bounds=_UNIT,
    ),
    AnswerMeasure(
        "anls",
        "written",
        _of_text(anls),
        "Normalised Levenshtein similarity of the written answer, 0 below one half.",
        "ANLS",
        bounds=_UNIT,
    ),
    AnswerMeasure(
        "iou",
        "written",
        _of_text(box_overlap),
        "Intersection over union of the written box and the right one.",
        "Intersection over union",
        bounds=_UNIT,
    ),
)
MEASURES: dict[str, AnswerMeasure] = {measure.name: measure for measure in _KNOWN}


def measure_title(name: str) -> str:
    """A measure in headings and along axes; one that the user made by its own name."""
    return MEASURES[name].title if name in MEASURES else name


def measure_of(spec: MeasureSpec, folder: Path) -> AnswerMeasure:
    """The measure of a name, or made from a function of the user's.

    A function takes the written answer and the list of right ones, and returns a number.

    Args:
        spec: As the file says it.
        folder: Where a function's module may lie, beside all that Python finds.

    Raises:
        InputError: No such measure or function.
    """
    if spec.items is not None:
        raise InputError(f"measures: {spec.measure} is of every item; items is for analyses")
    if spec.function is None:
        if spec.measure not in MEASURES:
            analyses = ", ".join(name for name, a in registered().items() if a.run)
            raise InputError(
                f"measures: no measure {spec.measure!r}; measures: {', '.join(MEASURES)}, states, "
                f"an analysis ({analyses}), or a function of your own ({{measure: a name, "
                "function: 'module:name'})"
            )
        return MEASURES[spec.measure]
    if spec.measure in MEASURES:
        raise InputError(f"measures: {spec.measure!r} is one already; name the function otherwise")
    function = _imported(spec.function, folder)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        raise InputError(
            f"measures: the source of {spec.function!r} cannot be read, so that a change could not "
            "be noticed: give a function written in Python"
        ) from None

    def score(seen: Observation, item: Item) -> float:
        value = function(seen["text"], list(item.answers))
        if not isinstance(value, Real | np.number) or isnan(float(value)):
            raise InputError(f"{spec.function} returned {value!r}, which is no number")
        return float(value)

    return AnswerMeasure(
        spec.measure,
        "written",
        score,
        f"{spec.function} of the written answer and the right ones.",
        spec.measure,
        version=sha256(source.encode()).hexdigest()[:16],
    )


def _imported(path: str, folder: Path) -> Callable[[str, list[str]], Any]:
    module, _, name = path.partition(":")
    sys.path.append(str(folder.absolute()))
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"measures: no function {path!r} (module:name): {error}") from None
    finally:
        sys.path.remove(str(folder.absolute()))
    if not callable(found):
        raise InputError(f"measures: {path!r} is no function")
    made: Callable[[str, list[str]], Any] = found
    return made
