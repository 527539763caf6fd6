"""Every benchmark of time and memory in one go, and RESULTS.md with what came out.

    python benchmarks/all.py                     # about ten minutes of an idle core
    python benchmarks/all.py --only encode.py    # one script anew; the others' rows stay
    python benchmarks/all.py --tiny              # a minute: whether it all runs; writes nothing

Each script runs in a process of its own. What it compares takes turns in that process, so a row is
a ratio of one run; rows beside each other need not be. The numbers are kept in RESULTS.json. The
exit code is 1 if a script failed, not if a goal was missed: that stands in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rows import GATHERED, Row, number  # type: ignore[import-not-found]
from timing import write  # type: ignore[import-not-found]

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "nnsight", "transformer-lens", "numpy")


@dataclass(frozen=True)
class Part:
    """One script, its arguments, and those of a run that only shows that it runs."""

    title: str
    script: str
    arguments: tuple[str, ...]
    tiny: tuple[str, ...]


_SMALL = ("--layers=2", "--width=64", "--side=4", "--repeats=1")
PARTS = (
    Part("Many plans on one batch", "conditions.py", ("--every=4", "--repeats=2"), _SMALL),
    Part(
        "Many plans, next to TransformerLens",
        "on_bridge.py",
        ("--repeats=2", "--every=12"),
        (*_SMALL, "--every=2"),
    ),
    Part("One plan", "one_plan.py", ("--repeats=15",), ("--repeats=1", "--tiny")),
    Part("Encoding", "encode.py", ("--repeats=7",), ("--repeats=1", "--families", "llava")),
    Part(
        "Reading",
        "readout.py",
        ("--vocabulary=32000", "--width=1024", "--repeats=3", "--dtypes", "bfloat16"),
        ("--states=300", "--vocabulary=5000", "--width=64", "--repeats=1", "--dtypes", "bfloat16"),
    ),
    Part("A study of a million units", "study_store.py", (), ("--units=2000",)),
    Part("Starting", "starting.py", (), ("--repeats=1", "--no-demo")),
    Part(
        "Growth",
        "growth.py",
        ("--repeats=2",),
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
    parser.add_argument("--folder", type=Path, default=HERE, help="of RESULTS.md and RESULTS.json")
    options = parser.parse_args()
    kept = options.folder / "RESULTS.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    failed = []
    for part in PARTS:
        if options.only and part.script not in options.only:
            continue
        threads = () if part.script == "starting.py" else (f"--threads={options.threads}",)
        arguments = (*(part.tiny if options.tiny else part.arguments), *threads)
        load = os.getloadavg()[0]
        rows = _rows(part.script, arguments)
        if not rows:
            failed.append(part.script)
            continue
        found[part.script] = {
            "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "load": round(load, 1),
            "arguments": list(arguments),
            "machine": machine(),
            "rows": [asdict(row) for row in rows],
        }
        if not options.tiny:
            kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            (options.folder / "RESULTS.md").write_text(page(found))
    write(f"stopped with an error: {', '.join(failed)}" if failed else "all ran")
    return 1 if failed else 0


def _rows(script: str, arguments: Sequence[str]) -> list[Row]:
    """What a script measured; nothing if it stopped with an error."""
    write(f"\n{script} {' '.join(arguments)}")
    with tempfile.TemporaryDirectory() as folder:
        gathered = Path(folder) / "rows"
        env = os.environ | {GATHERED: str(gathered)}
        done = subprocess.run(
            [sys.executable, HERE / script, *arguments],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        lines = gathered.read_text().splitlines() if gathered.exists() else []
    # A missed limit ends a script with 1 as well.
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        write(done.stderr)
        return []
    return [Row(**json.loads(line)) for line in lines]


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as a page."""
    rows = {script: [Row(**row) for row in part["rows"]] for script, part in found.items()}
    judged = [row for some in rows.values() for row in some if row.goal is not None]
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/all.py`; [what is measured, and how](README.md).",
        "Ratios are in processor time, beside it by the clock; *limit* is what arithmetic leaves. "
        f"{sum(row.kept for row in judged)} of {len(judged)} goals are reached.",
        "",
        "`one_gpu.py` is no part of this. No GPU was at hand when this page was first written: it "
        "was run in its tiny form on the processor only, which shows that it runs, and measures "
        "nothing.",
        "",
        *(f"- {told}" for told in dict.fromkeys(part["machine"] for part in found.values())),
    ]
    for part in PARTS:
        if part.script not in found:
            continue
        ran = found[part.script]
        lines += ["", f"## {part.title}", ""]
        load = ran["load"]
        busy = (
            "how busy the machine was is not recorded"
            if load is None
            else f"{load} processes ran on the machine, or waited for it, when it began"
        )
        lines += [
            f"`{' '.join((part.script, *ran['arguments']))}`, {ran['when']}; {busy}.",
            *(["", ran["note"]] if ran.get("note") else []),
            "",
            "| what | measured | clock | limit | goal | |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in rows[part.script]]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    cells = [
        "" if cell is None else number(cell) + (f" {row.unit}" if row.unit else "")
        for cell in (row.measured, row.clock, row.limit, row.goal)
    ]
    verdict = "" if row.goal is None else "reached" if row.kept else "**missed**"
    told = "; ".join(part for part in (verdict, row.note) if part)
    return f"| {row.what} | {' | '.join(cells)} | {told} |"


def machine() -> str:
    """Processor and versions in one line."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(named, platform.processor() or platform.machine())
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{processor}, {os.cpu_count()} cores; {platform.system()}, "
        f"Python {platform.python_version()}, {versions}"
    )


if __name__ == "__main__":
    sys.exit(main())
