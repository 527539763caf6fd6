"""A study of a million units: how fast they are stored, and how fast it is known what is left.

No model runs: the units are those of a study with as many items and conditions, with contents of
the usual size. ``python benchmarks/study_store.py [UNITS] [FOLDER]``.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from embedlens.analyses.studies.condition_grid import StudyCondition
from embedlens.analyses.studies.items import Item
from embedlens.analyses.studies.measures import MEASURES
from embedlens.analyses.studies.unit_store import DONE, DoneUnits, StoredUnit, UnitStore
from embedlens.analyses.studies.units import ModelPart, Units

UNITS = 1_000_000
CONTENT = '[{"values": [[1.0, -0.25], [0.0, -3.5], [1.0, -0.125], [1.0, -0.0625]]}]'


def units_of(number: int) -> Units:
    """A study of that many units: a thousand conditions of one unit each, over enough items."""
    conditions = [StudyCondition(f"c{i}") for i in range(1000)]
    items = [Item((), f"question {i}") for i in range(number // len(conditions))]
    model = ModelPart("a model", conditions)
    return Units([model], items, {"answer": [MEASURES["accuracy"]]}, "", 1, 1)


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def now() -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    return time.perf_counter(), time.process_time()


def memory() -> int:
    """Most memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(number: int, folder: Path) -> None:
    """Store all but every tenth unit, and find out which ones are left."""
    units = units_of(number)
    start_memory = memory()
    with UnitStore(folder / "units.sqlite", {"name": "synthetic"}) as store:
        start, stored = now(), 0
        for unit in units:
            if unit.place % 10:
                store.add(StoredUnit(unit.place, unit.key, DONE, 0.1, 0, 1, None, CONTENT))
                stored += 1
        clock, processor = (b - a for a, b in zip(start, now(), strict=True))
    say(f"{number:,} units, {stored:,} stored one by one: {stored / clock:,.0f} a second")
    say(f"({stored / processor:,.0f} in a second of the processor)")
    say(f"memory while storing: {start_memory} MB to {memory()} MB")
    with UnitStore(folder / "units.sqlite", write=False) as store:
        start = now()
        done = DoneUnits(len(units))
        store.note_done(done)
        left = sum(not done.has(unit.place, unit.key) for unit in units)
        clock, processor = (b - a for a, b in zip(start, now(), strict=True))
    say(f"{left:,} left, decided in {clock:.1f} s, {processor:.1f} s of the processor")
    say(f"memory then: {memory()} MB")
    say(f"file: {(folder / 'units.sqlite').stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else UNITS
    if len(sys.argv) > 2:
        measure(count, Path(sys.argv[2]))
    else:
        with TemporaryDirectory() as scratch:
            measure(count, Path(scratch))
