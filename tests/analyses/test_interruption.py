"""A signal waits for the end of an import, and no longer."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from processes import run_python

SLOW = """
import os, signal
os.kill(os.getpid(), signal.{stop})
for _ in range(10):
    pass
whole = True
"""
PROGRAM = """
import sys, time
from embedlens.analyses.interruption import stop_between_imports
sys.path.insert(0, {folder!r})
stop_between_imports()
try:
    import slow
    print("imported", slow.whole, flush=True)
    time.sleep(600)
    print("never stopped", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_import_is_finished_first(tmp_path: Path, stop: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(SLOW.format(stop=stop.name))
    done = run_python("-c", PROGRAM.format(folder=str(tmp_path)), cwd=tmp_path, timeout=120)
    assert done.stdout.splitlines() == ["imported True", "stopped"], done.stderr
