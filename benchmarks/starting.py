"""What starting costs: processor seconds of `import embedlens`, `--help` and the demo.

    python benchmarks/starting.py

Each in a process of its own, in turns; the least counts, because it is the work that is meant and
not what the machine did besides. The demo is run once, in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import Row  # type: ignore[import-not-found]

STARTS = {
    "import embedlens": (["-c", "import embedlens"], 0.3),
    "embedlens --help": (["-m", "embedlens", "--help"], 0.5),
}
DEMO = 30.0


def main() -> int:
    """Measure, print one line each, and compare with the goals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-demo", action="store_true")
    options = parser.parse_args()
    taken = {
        name: [_taken(command) for _ in range(options.repeats)]
        for name, (command, _) in STARTS.items()
    }
    kept = True
    for name, (_, goal) in STARTS.items():
        processor, clock = (min(times) for times in zip(*taken[name], strict=True))
        kept &= Row(name, processor, goal, clock, unit="s").say()
    if not options.no_demo:
        processor, clock = _taken(["-m", "embedlens", "demo"])
        kept &= Row("embedlens demo", processor, DEMO, clock, unit="s").say()
    return 0 if kept else 1


def _taken(command: list[str]) -> tuple[float, float]:
    """Seconds of all processors, and by the clock, of one process and those that it starts."""
    before, start = os.times(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *command], cwd=Path(folder), capture_output=True, check=False
        )
    after, stop = os.times(), time.perf_counter()
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    user, system = (
        after.children_user - before.children_user,
        after.children_system - before.children_system,
    )
    return user + system, stop - start


if __name__ == "__main__":
    sys.exit(main())
