"""Where this tree lies, and this interpreter in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_python(
    *arguments: str, cwd: Path, timeout: float = 800, **environment: str
) -> subprocess.CompletedProcess[str]:
    """This interpreter in a process of its own, which sees no PYTHONPATH but the given one."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
