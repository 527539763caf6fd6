"""Numbers of a sentence beside those of a table, which may be half a unit of the last digit off."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from embedlens.analyses import Result

Numbers = list[float]
Sentence = tuple[str, Callable[[Result, re.Match[str]], Numbers]]


def numbers_in(sentence: str) -> list[tuple[float, float]]:
    """Numbers outside of quotes, each with half a unit of its last digit."""
    plain = re.sub("“.*?”", "", sentence).replace("−", "-")
    found = re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?", plain)
    return [(float(n), 0.5 * 10.0 ** -len(n.partition(".")[2])) for n in found]


def assert_numbers(sentence: str, expected: Sequence[float]) -> None:
    found = numbers_in(sentence)
    assert len(found) == len(expected), f"{sentence!r}: {found} and not {expected}"
    for (told, half), value in zip(found, expected, strict=True):
        assert abs(told - value) <= half * 1.001, f"{told} and not {value} in {sentence!r}"


def row_of(frame: pd.DataFrame, **where: Any) -> pd.Series:
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, where
    return frame.iloc[0]


def plain(row: pd.Series) -> Numbers:
    """A number with its interval where there is one."""
    return [row[key] for key in ("value", "low", "high") if row[key] == row[key]]


def around(row: pd.Series, name: str = "value") -> Numbers:
    """A share or a change in percent, with its interval where there is one."""
    ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    found = [row[key] for key in (name, *ends)]
    return [100 * x for x in found if x == x]


def apart(row: pd.Series, other: pd.Series, words: tuple[str, str, str]) -> str:
    """The word for an interval above the other, one that meets it or is unknown, one below."""
    above, below = row["low"] > other["high"], row["high"] < other["low"]
    return words[0] if above else words[2] if below else words[1]


def shown_p(p: float) -> float:
    return max(p, 0.001)
