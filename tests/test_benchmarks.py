"""The benchmarks run, in their tiny form, and their page says what they measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

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
