"""What a written answer is worth beside the right ones: exact match, VQA accuracy, ANLS, IoU."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from statistics import fmean

from ...lens.errors import InputError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)
_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_NUMBER = r"-?\d+(?:\.\d+)?"
_BOX = re.compile(
    rf"{_NUMBER}(?:\s*,\s*|\s+){_NUMBER}(?:\s*,\s*|\s+){_NUMBER}(?:\s*,\s*|\s+){_NUMBER}"
)
LEAST_SIMILARITY = 0.5
"""Below it an answer counts as wrong in ANLS."""


def normalised(answer: str) -> str:
    """Lower case, no punctuation, no articles, single blanks: what exact match compares."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_MARKS)).split())


def exact_match(written: str, answers: Sequence[str]) -> float:
    """1 if the answer is one of the right ones after :func:`normalised`, else 0."""
    said = normalised(written)
    return float(any(said == normalised(answer) for answer in answers))


def vqa_accuracy(written: str, answers: Sequence[str]) -> float:
    """How many of the people who were asked gave this answer, of three needed.

    The mean over all sets with one person left out of min(1, agreeing / 3), as in VQA (Antol et
    al. 2015); written numbers up to ten count as digits. With a single right answer it is exact
    match. The official list of contractions is not applied.
    """
    said = _as_digits(written)
    same = [said == _as_digits(answer) for answer in answers]
    if len(same) == 1:
        return float(same[0])
    return fmean(min(1.0, (sum(same) - one) / 3) for one in same)


def _as_digits(answer: str) -> str:
    return " ".join(_NUMBERS.get(word, word) for word in normalised(answer).split())


def anls(written: str, answers: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest right answer; 0 below one half.

    One less the edit distance over the longer length, case and outer blanks ignored: ANLS of
    Biten et al. 2019 for one question; its mean over questions is theirs.
    """
    best = max(_similarity(written, answer) for answer in answers)
    return best if best >= LEAST_SIMILARITY else 0.0


def _similarity(one: str, other: str) -> float:
    one, other = (" ".join(text.lower().split()) for text in (one, other))
    longest = max(len(one), len(other))
    return 1.0 if not longest else 1 - _edits(one, other) / longest


def _edits(one: str, other: str) -> int:
    """Insertions, deletions and replacements between two texts."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, against in enumerate(other, 1):
            here = min(row[j] + 1, row[j - 1] + 1, before + (letter != against))
            before, row[j] = row[j], here
    return row[-1]


def box_overlap(written: str, answers: Sequence[str]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), the best right one.

    The first four numbers that follow one another in the written answer are its box; an answer
    without one is worth 0.

    Raises:
        InputError: A right answer that is no box.
    """
    boxes = [_box(answer) for answer in answers]
    for answer, box in zip(answers, boxes, strict=True):
        if box is None:
            raise InputError(
                f"iou: the right answer {answer!r} is no box: left, top, right, bottom"
            )
    said = _box(written)
    if said is None:
        return 0.0
    return max(_overlap(said, box) for box in boxes if box is not None)


Box = tuple[float, float, float, float]


def _box(text: str) -> Box | None:
    found = _BOX.search(text)
    if found is None:
        return None
    left, top, right, bottom = (float(number) for number in re.findall(_NUMBER, found[0]))
    return left, top, right, bottom


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (one, other)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0
