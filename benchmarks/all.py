"""Every benchmark of time and memory, part by part, and RESULTS.md with what came out.

    python benchmarks/all.py                     # some twenty minutes of an idle core
    python benchmarks/all.py --resume            # goes on: parts measured of this code are left
    python benchmarks/all.py --only encode.py    # one script anew; the others' rows stay
    python benchmarks/all.py --list              # the parts, and how long each took last time
    python benchmarks/all.py --tiny              # a minute: whether it all runs; writes nothing

Each part runs in a process of its own, and its rows are written down when it is done. What it
compares takes turns in that process, so a row is a ratio of one run; rows beside each other need
not be. The numbers are kept in RESULTS.json. The exit code is 1 if a part failed, not if a goal was
missed: that stands in the table.
"""

from __future__ import annotations

import argparse
import hashlib
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
from time import perf_counter
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


def _growth(what: str, name: str, *tiny: str) -> Part:
    """The part of `growth.py` along one of its axes."""
    others = [f"--{axis}" for axis in ("layers", "sides", "images", "conditions") if axis != name]
    small = (f"--{name}", *tiny, "--width=64", "--repeats=1")
    return Part(f"Growth with {what}", "growth.py", ("--repeats=2", *others), (*others, *small))


_SMALL = ("--layers=2", "--width=64", "--side=4", "--repeats=1")
PARTS = (
    Part("Many plans on one batch", "conditions.py", ("--every=4", "--repeats=2"), _SMALL),
    Part("Many plans whose runs keep insides", "captured.py", ("--repeats=1",), _SMALL),
    Part(
        "Many plans, next to TransformerLens",
        "on_bridge.py",
        ("--repeats=2", "--every=12"),
        (*_SMALL, "--every=2"),
    ),
    Part("One plan", "one_plan.py", ("--repeats=15",), ("--repeats=1", "--tiny")),
    Part("Encoding", "encode.py", ("--repeats=31",), ("--repeats=1", "--families", "llava")),
    Part(
        "Reading",
        "readout.py",
        ("--vocabulary=32000", "--width=1024", "--repeats=3", "--dtypes", "bfloat16"),
        ("--states=300", "--vocabulary=5000", "--width=64", "--repeats=1", "--dtypes", "bfloat16"),
    ),
    Part("A study of a million units", "study_store.py", (), ("--units=2000",)),
    Part("Starting", "starting.py", (), ("--repeats=1", "--no-demo")),
    _growth("layers", "layers", "2"),
    _growth("visual tokens", "sides", "4"),
    _growth("images", "images", "1", "2"),
    _growth("conditions", "conditions", "4", "8"),
)


def main() -> int:
    """Run every script, and write down what they measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="only whether everything runs")
    parser.add_argument("--only", nargs="+", default=[], help="scripts, for instance encode.py")
    parser.add_argument(
        "--resume", action="store_true", help="leave what was measured of this code"
    )
    parser.add_argument("--list", action="store_true", help="only say which parts there are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=HERE, help="of RESULTS.md and RESULTS.json")
    options = parser.parse_args()
    kept = options.folder / "RESULTS.json"
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    failed, code, told = [], code_now(), machine()
    for part in PARTS:
        if options.only and part.script not in options.only:
            continue
        threads = () if part.script == "starting.py" else (f"--threads={options.threads}",)
        arguments = [*(part.tiny if options.tiny else part.arguments), *threads]
        before = found.get(part.title, {})
        took = before.get("seconds")
        last = "never measured" if took is None else f"took {took} s on {before['when']}"
        write(f"\n{part.title}: {last}")
        same = {"code": code, "arguments": arguments, "machine": told}
        if options.list:
            continue
        if options.resume and all(before.get(name) == value for name, value in same.items()):
            write("measured of this code on this machine already")
            continue
        load, start = os.getloadavg()[0], perf_counter()
        rows = _rows(part.script, arguments)
        write(f"{part.title}: {perf_counter() - start:.0f} s")
        if not rows:
            failed.append(part.title)
            continue
        found[part.title] = {
            "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "seconds": round(perf_counter() - start),
            "load": round(load, 1),
            **same,
            "rows": [asdict(row) for row in rows],
        }
        if not options.tiny:
            kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            (options.folder / "RESULTS.md").write_text(page(found))
    if not options.list:
        write(f"stopped with an error: {', '.join(failed)}" if failed else "all ran")
    return 1 if failed else 0


def code_now() -> str:
    """Which code is measured: equal as long as no file of the package or of the benchmarks is."""
    root = HERE.parent
    rooms = ("lens", "interventions", "analyses", "benchmarks")
    files = sorted(file for room in rooms for file in (root / room).rglob("*.py"))
    made = hashlib.sha256()
    for file in files:
        made.update(f"{file.relative_to(root)}".encode() + file.read_bytes())
    return made.hexdigest()[:12]


def _rows(script: str, arguments: Sequence[str]) -> list[Row]:
    """What a script measured; nothing if it stopped with an error."""
    write(f"{script} {' '.join(arguments)}")
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
    rows = {title: [Row(**row) for row in part["rows"]] for title, part in found.items()}
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
        if part.title not in found:
            continue
        ran = found[part.title]
        lines += ["", f"## {part.title}", ""]
        load = ran["load"]
        busy = (
            "how busy the machine was is not recorded"
            if load is None
            else f"{load} processes ran on the machine, or waited for it, when it began"
        )
        lasted = f", in {ran['seconds']} s" if "seconds" in ran else ""
        lines += [
            f"`{' '.join((part.script, *ran['arguments']))}`, {ran['when']}{lasted}; {busy}.",
            *(["", ran["note"]] if ran.get("note") else []),
            "",
            "| what | measured | clock | limit | goal | |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in rows[part.title]]
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
