"""How an answer to a benchmark is scored, by the form of the right one."""

from collections.abc import Sequence

from embedlens.analyses.studies.written_answers import box_overlap, exact_match, vqa_accuracy
from embedlens.lens.errors import InputError

FOUND = 0.5
SEVERAL = 3


def score(written: str, answers: Sequence[str]) -> float:
    """A box is found or not, several people vote, anything else matches or does not."""
    try:
        return float(box_overlap(written, answers) >= FOUND)
    except InputError:  # the right answer is no box
        several = len(answers) >= SEVERAL
        return vqa_accuracy(written, answers) if several else exact_match(written, answers)
