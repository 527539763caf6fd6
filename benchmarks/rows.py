"""One measured number beside its limit and its goal; what `all.py` gathers from the scripts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from timing import write  # type: ignore[import-not-found]

# A file that every row is appended to as JSON; `all.py` names one.
GATHERED = "EMBEDLENS_BENCHMARK_ROWS"


@dataclass(frozen=True)
class Row:
    """What was measured.

    Attributes:
        what: What, next to what.
        measured: The number that is judged; of times a ratio in processor time, or seconds of it.
        goal: Most that it should be; None where there is no goal.
        clock: The same by the clock.
        limit: What arithmetic leaves, where that is known.
        unit: Of the number; empty for a ratio.
        note: More about it.
    """

    what: str
    measured: float
    goal: float | None = None
    clock: float | None = None
    limit: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def kept(self) -> bool:
        """Whether the goal is reached, if there is one."""
        return self.goal is None or self.measured <= self.goal

    def say(self) -> bool:
        """Write the row, gather it if somebody gathers, and return whether the goal is reached."""
        said = f"{self.what}: {number(self.measured)}{self.unit and ' ' + self.unit}"
        if self.clock is not None:
            said += f" in processor time, {number(self.clock)} by the clock"
        if self.limit is not None:
            said += f", limit {number(self.limit)}"
        if self.note:
            said += f" ({self.note})"
        if self.goal is not None:
            said += f": {'within' if self.kept else 'OVER'} {number(self.goal)}"
        write(said)
        self.gather()
        return self.kept

    def gather(self) -> None:
        """Append the row to the file that somebody gathers rows in, if anybody does."""
        if gathered := os.environ.get(GATHERED):
            with Path(gathered).open("a") as file:
                file.write(json.dumps(asdict(self)) + "\n")


def number(value: float) -> str:
    """A number with three digits behind the point if it is small, and none if it is large."""
    digits = 3 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"
