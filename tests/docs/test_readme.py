"""The snippet and the commands of README.md run as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from processes import ROOT, run_python

TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = dict(re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*?)\n```", TEXT, re.DOTALL))
HUB = "llava-hf/llava-1.5-7b-hf"


def test_the_snippets_are_the_ones_known_here() -> None:
    assert len(PYTHON) == 1
    assert set(COMMANDS) == {"demo", "tests", "analyze", "check", "lmms"}
    assert TEXT.count("```bash") == len(COMMANDS)


def test_the_snippet_runs(run_snippet: Callable[[str], str], folder: Path) -> None:
    assert len(run_snippet(PYTHON[0]).splitlines()) > 2
    assert (folder / "alignment.png").stat().st_size > 10_000


def test_the_check_command_runs(folder: Path) -> None:
    program, *arguments = shlex.split(COMMANDS["check"].replace(HUB, "model"))
    assert program == "embedlens"
    done = run_python("-m", program, *arguments, cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "ZeroFFN" in done.stdout


@pytest.mark.full
def test_the_analyze_command_runs(folder: Path) -> None:
    program, *arguments = shlex.split(COMMANDS["analyze"].replace(HUB, "model"))
    assert program == "embedlens"
    done = run_python("-m", program, *arguments, cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert (folder / "embedlens-report").is_dir()


def test_the_setup_commands_name_what_there_is() -> None:
    """The commands themselves install packages: .ci/run takes them from here and runs them."""
    install, *start = COMMANDS["demo"].split(" && ")
    assert shlex.split(install)[:2] == ["pip", "install"]
    assert start == ["embedlens demo"]
    develop, test = COMMANDS["tests"].split(" && ")
    assert shlex.split(develop)[:2] == ["pip", "install"]
    assert test == "pytest"
    assert (ROOT / shlex.split(install)[3]).is_file()


def test_the_first_page_starts_with_the_same_command() -> None:
    assert f"```bash\n{COMMANDS['demo']}\n```" in (ROOT / "docs/start.md").read_text()


def test_files_and_pictures_exist() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert len(targets) > 15
    for target in targets:
        assert (ROOT / target).exists(), target
