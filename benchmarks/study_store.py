"""A study of a million units: how fast they are stored, and how fast it is known what is left.

No model runs: the units are those of a study with as many items and conditions, with contents of
the usual size. ``python benchmarks/study_store.py [--units 1000000] [--folder FOLDER]``.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rows import Row  # type: ignore[import-not-found]

from embedlens.analyses.studies.condition_grid import StudyCondition
from embedlens.analyses.studies.items import Item
from embedlens.analyses.studies.measures import MEASURES
from embedlens.analyses.studies.unit_store import DONE, DoneUnits, StoredUnit, UnitStore
from embedlens.analyses.studies.units import ModelPart, Units

# Most that it should take: µs for a unit (5,000 a second), seconds, and MB.
STORED, DECIDED, FLAT = 200.0, 10.0, 64.0
CONTENT = '[{"values": [[1.0, -0.25], [0.0, -3.5], [1.0, -0.125], [1.0, -0.0625]]}]'


def units_of(number: int) -> Units:
    """A study of that many units: a thousand conditions of one unit each, over enough items."""
    conditions = [StudyCondition(f"c{i}") for i in range(1000)]
    items = [Item((), f"question {i}") for i in range(number // len(conditions))]
    model = ModelPart("a model", conditions)
    return Units([model], items, {"answer": [MEASURES["accuracy"]]}, "", 1, 1)


def now() -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds since then, by the clock and of the processor."""
    clock, processor = now()
    return clock - start[0], processor - start[1]


def memory() -> int:
    """Most memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measure(number: int, folder: Path) -> bool:
    """Store all but every tenth unit, and find out which ones are left."""
    units, file = units_of(number), folder / "units.sqlite"
    for unit in units:
        _ = unit.key  # what all units need is made once, before memory is looked at
        break
    before = memory()
    with UnitStore(file, {"name": "synthetic"}) as store:
        start, stored = now(), 0
        for unit in units:
            if unit.place % 10:
                store.add(StoredUnit(unit.place, unit.key, DONE, 0.1, 0, 1, None, CONTENT))
                stored += 1
        clock, processor = since(start)
    grown = memory() - before
    size = file.stat().st_size / 1e6
    kept: bool = Row(
        f"storing one of {number:,} units",
        1e6 * clock / stored,
        STORED,
        unit="µs",
        note=f"by the clock, because the disk counts; {1e6 * processor / stored:.0f} µs of the "
        f"processor; {stored / clock:,.0f} a second; {size:.0f} MB in all",
    ).say()
    kept &= Row("memory that storing them takes", grown, FLAT, unit="MB").say()
    start = now()
    with UnitStore(file, write=False) as store:
        done = DoneUnits(len(units))
        store.note_done(done)
        left = sum(not done.has(unit.place, unit.key) for unit in units)
    clock, processor = since(start)
    told = f"by the clock; {processor:.1f} s of the processor; {left:,} are left"
    kept &= Row("deciding which of them are left", clock, DECIDED, unit="s", note=told).say()
    kept &= Row("memory that both take", memory() - before, FLAT, unit="MB").say()
    return kept


def main() -> int:
    """Measure, and compare with the goals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to store; a temporary one without")
    parser.add_argument("--threads", type=int, default=1, help="not used")
    options = parser.parse_args()
    with TemporaryDirectory(dir=options.folder) as scratch:
        return 0 if measure(options.units, Path(scratch)) else 1


if __name__ == "__main__":
    sys.exit(main())
