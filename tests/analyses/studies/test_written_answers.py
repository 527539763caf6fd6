"""What a written answer is worth, by hand."""

from __future__ import annotations

import pytest

from embedlens.analyses.studies.written_answers import (
    anls,
    box_overlap,
    exact_match,
    normalised,
    vqa_accuracy,
)
from embedlens.lens.errors import InputError


def test_normalising_drops_case_marks_articles_and_blanks() -> None:
    assert normalised("  The  Red, circle!\n") == "red circle"
    assert normalised("an apple, a pear") == "apple pear"
    assert normalised("theatre") == "theatre"


@pytest.mark.parametrize(
    ("written", "answers", "expected"),
    [
        ("Red.", ["red"], 1),
        ("a red circle", ["red circle", "circle"], 1),
        ("circle", ["red circle", "Circle"], 1),
        ("red", ["blue", "reddish"], 0),
        ("", ["red"], 0),
    ],
)
def test_exact_match(written: str, answers: list[str], expected: float) -> None:
    assert exact_match(written, answers) == expected


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    # Of ten people: leave one out, and count at most three of the other nine.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_of_ten_people(agreeing: int, expected: float) -> None:
    people = ["two"] * agreeing + ["three"] * (10 - agreeing)
    assert vqa_accuracy("2", people) == pytest.approx(expected)


def test_vqa_accuracy_of_one_person_is_exact_match() -> None:
    assert vqa_accuracy("The dog", ["dog"]) == 1
    assert vqa_accuracy("cat", ["dog"]) == 0


@pytest.mark.parametrize(
    ("written", "answers", "expected"),
    [
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("Invoice  42", ["invoice 42"], 1.0),
        ("abcd", ["abxy"], 0.5),  # just not below one half
        ("abcd", ["axyz"], 0.0),  # a quarter
        ("abc", ["xyz", "abcd"], 0.75),
        ("", ["a"], 0.0),
    ],
)
def test_anls(written: str, answers: list[str], expected: float) -> None:
    assert anls(written, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "answers", "expected"),
    [
        ("[0, 0, 2, 2]", ["1 1 3 3"], 1 / 7),
        ("the box is 0.5, 0.5, 1.0, 1.0.", ["[0.5, 0.5, 1, 1]"], 1.0),
        ("0 0 1 1", ["[2, 2, 3, 3]"], 0.0),
        ("0 0 1 1", ["[2, 2, 3, 3]", "[0, 0, 1, 2]"], 0.5),
        ("(0 0 4 4", ["[1, 1, 3, 3]"], 0.25),
        ("1 2 3", ["[0, 0, 1, 1]"], 0.0),
        ("3 3 1 1", ["[1, 1, 3, 3]"], 0.0),  # inside out
    ],
)
def test_intersection_over_union(written: str, answers: list[str], expected: float) -> None:
    assert box_overlap(written, answers) == pytest.approx(expected)


def test_a_right_answer_that_is_no_box_is_refused() -> None:
    with pytest.raises(InputError, match="'red' is no box"):
        box_overlap("0 0 1 1", ["red"])
