"""Runs on a server that has no embedlens equal local ones, or fail with one clear line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from processes import ROOT, run_python

PARTS = ("remote/against_ndif_server.py", "remote/ndif_server.py", "tiny.py", "tolerances.py")


# One test to pytest, and dozens in the process that it starts.
@pytest.mark.timeout(1800)
def test_every_case_holds_between_an_installed_package_and_a_server(
    wheel: Path, tmp_path: Path
) -> None:
    for part in PARTS:
        shutil.copy(ROOT / "tests" / part, tmp_path)
    options = ("-q", "-p", "no:cacheprovider", "-W", "error", "-rA")
    command = ("-m", "pytest", "against_ndif_server.py", *options)
    done = run_python(*command, cwd=tmp_path, timeout=1700, PYTHONPATH=str(wheel))
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) >= 30
    assert not re.search(r"skipped|xfailed|deselected", done.stdout)
