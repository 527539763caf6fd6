"""Every benchmark of time and memory in one go, and RESULTS.md with what came out.

    python benchmarks/all.py            # about half an hour on two idle cores
    python benchmarks/all.py --tiny     # a minute: whether it all runs; writes nothing

Each script runs in a process of its own. What it compares takes turns in that process, so a row is
a ratio of one run; rows beside each other need not be. The exit code is 1 if a script failed, not
if a goal was missed: that stands in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rows import GATHERED, Row, number  # type: ignore[import-not-found]
from timing import write  # type: ignore[import-not-found]

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
PACKAGES = ("torch", "transformers", "nnsight", "transformer-lens", "numpy")

# Title, script, its arguments, and those of a run that only shows that it runs.
PARTS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "Many plans on one batch",
        "conditions.py",
        ("--every=2",),
        ("--layers=2", "--width=64", "--side=4", "--repeats=1"),
    ),
    (
        "Many plans, next to TransformerLens",
        "on_bridge.py",
        (),
        ("--layers=2", "--width=64", "--side=4", "--repeats=1", "--every=2"),
    ),
    ("One plan", "one_plan.py", (), ("--repeats=1", "--tiny")),
    ("Encoding", "encode.py", (), ("--repeats=1", "--families=llava")),
    (
        "Reading",
        "readout.py",
        ("--vocabulary=64000", "--width=2048", "--repeats=3", "--dtypes=bfloat16"),
        ("--states=300", "--vocabulary=5000", "--width=64", "--repeats=1", "--dtypes=bfloat16"),
    ),
    ("Starting", "starting.py", (), ("--repeats=1", "--no-demo")),
    (
        "Growth",
        "growth.py",
        (),
        (
            *("--layers", "2", "--sides", "4", "--conditions", "4", "8"),
            *("--images", "1", "2", "--width=64", "--repeats=1"),
        ),
    ),
)


def main() -> int:
    """Run every script, and write down what they measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="only whether everything runs")
    parser.add_argument("--only", nargs="+", default=[], help="scripts, for instance encode.py")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="where to write; benchmarks/RESULTS.md")
    options = parser.parse_args()
    found: list[tuple[str, str, list[Row]]] = []
    failed = []
    for title, script, arguments, tiny in PARTS:
        if options.only and script not in options.only:
            continue
        threads = () if script == "starting.py" else (f"--threads={options.threads}",)
        chosen = tiny if options.tiny else arguments
        rows, stopped = _rows(script, (*chosen, *threads))
        if stopped:
            failed.append(script)
        found.append((title, script, rows))
    results = options.results or (None if options.tiny else RESULTS)
    if results is not None:
        results.write_text(page(found, failed, options.threads))
        write(f"written: {results.name}")
    return 1 if failed else 0


def _rows(script: str, arguments: Sequence[str]) -> tuple[list[Row], bool]:
    """What a script measured, and whether it stopped with an error."""
    write(f"\n{script} {' '.join(arguments)}")
    with tempfile.TemporaryDirectory() as folder:
        gathered = Path(folder) / "rows"
        env = os.environ | {GATHERED: str(gathered)}
        done = subprocess.run([sys.executable, HERE / script, *arguments], env=env, check=False)
        lines = gathered.read_text().splitlines() if gathered.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    # A missed limit ends a script with 1 as well, but then it has measured.
    return rows, done.returncode != 0 and (done.returncode != 1 or not rows)


def page(
    found: Sequence[tuple[str, str, Sequence[Row]]], failed: Sequence[str], threads: int
) -> str:
    """The rows as a page."""
    when = datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC")
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    rows = [row for _, _, some in found for row in some if row.goal is not None]
    missed = sum(not row.kept for row in rows)
    lines = [
        "# Results",
        "",
        f"Written by `python benchmarks/all.py` on {when}; [what is measured, and how](README.md).",
        "",
        f"- Machine: {_processor()}, {os.cpu_count()} cores, {threads} thread"
        f"{'s' if threads > 1 else ''} used; {platform.system()}, Python {platform.python_version()}",
        f"- Load of the machine when this was written: {os.getloadavg()[0]:.1f} processes",
        f"- Versions: {versions}",
        "- No GPU was at hand: `one_gpu.py` was run in its tiny form on the processor only, which "
        "shows that it runs and measures nothing.",
        f"- Of {len(rows)} rows with a goal {len(rows) - missed} reach it.",
        "",
        "Ratios are in processor time, beside it by the clock. *Limit* is what arithmetic leaves.",
    ]
    if failed:
        lines += ["", f"Stopped with an error: {', '.join(failed)}."]
    for title, script, some in found:
        lines += ["", f"## {title}", "", f"`{script}`", ""]
        lines += ["| what | measured | clock | limit | goal | |", "|---|---|---|---|---|---|"]
        for row in some:
            cells = (row.measured, row.clock, row.limit, row.goal)
            said = [
                "" if cell is None else number(cell) + (f" {row.unit}" if row.unit else "")
                for cell in cells
            ]
            verdict = "" if row.goal is None else "reached" if row.kept else "**missed**"
            told = f"{verdict}; {row.note}" if verdict and row.note else verdict or row.note
            lines.append(f"| {row.what} | {' | '.join(said)} | {told} |")
    return "\n".join(lines) + "\n"


def _processor() -> str:
    """The processor's name, as the system tells it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


if __name__ == "__main__":
    sys.exit(main())
