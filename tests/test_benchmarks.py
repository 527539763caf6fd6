"""The benchmarks run, in their tiny form, and their page says what they measured."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from processes import ROOT, run_python

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.full
def test_what_is_measured_is_gathered_and_written_down(tmp_path: Path) -> None:
    script = str(BENCHMARKS / "all.py")
    done = run_python(script, "--tiny", "--only", "encode.py", cwd=ROOT)
    assert "all ran" in done.stdout
    assert re.search(r"encode, llava, new image size .*: [\d.]+ in processor time", done.stdout)
    # A tiny run writes no page over the measured one.
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_the_sweeps_of_a_gpu_run_tiny_on_a_cpu() -> None:
    done = run_python(str(BENCHMARKS / "one_gpu.py"), "--tiny", "--repeats=1", cwd=ROOT)
    assert "differs from single runs" not in done.stdout
    for named in ("1 layers", "2 layers", "4 visual tokens", "9 visual tokens"):
        assert re.search(rf"{named}: .* conditions; 0\.\d+ of the operations", done.stdout)


def test_the_page_of_results_says_what_was_measured() -> None:
    page = (BENCHMARKS / "RESULTS.md").read_text()
    kept = json.loads((BENCHMARKS / "RESULTS.json").read_text())
    rows = [row for part in kept.values() for row in part["rows"]]
    assert rows
    for row in rows:
        assert f"| {row['what']} | " in page
    judged = [row for row in rows if row["goal"] is not None]
    reached = sum(row["measured"] <= row["goal"] for row in judged)
    assert f"{reached} of {len(judged)} goals are reached" in page
    assert page.count("| **missed**") == len(judged) - reached
    for part in kept.values():
        assert part["when"] in page
        assert part["machine"] in page


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # type: ignore[no-untyped-call]
    everything, rows = map(importlib.import_module, ("all", "rows"))
    ran: list[str] = []
    broken = ["encode.py"]

    def measured(script: str, _: Any) -> list[Any]:
        ran.append(script)
        return [] if script in broken else [rows.Row(script, 1.0)]

    def start(*arguments: str) -> int:
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["all.py", f"--folder={tmp_path}", *arguments])
        code: int = everything.main()
        return code

    monkeypatch.setattr(everything, "_rows", measured)
    assert start() == 1
    assert len(ran) == len(everything.PARTS)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "in 0 s" in page
    assert "encode.py" not in page
    broken.clear()
    assert start("--resume") == 0
    assert ran == ["encode.py"]
    assert start("--resume") == 0
    assert not ran
    monkeypatch.setattr(everything, "code_now", lambda: "other code")
    assert start("--resume", "--only", "growth.py") == 0
    assert ran == ["growth.py"] * 4
    assert start("--list") == 0
    assert not ran
    for name in ("all", "rows", "timing"):
        sys.modules.pop(name, None)
