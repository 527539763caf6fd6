"""Every snippet and command of README.md runs as it stands there."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from processes import ROOT, run_python

TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = dict(re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*?)\n```", TEXT, re.DOTALL))
HUB = '"llava-hf/llava-1.5-7b-hf"'
# What stands in for a hub id and a GPU.
STAND_INS = {
    HUB: '"model"',
    'device="cuda"': 'device="cpu"',
    'layers="4-7"': 'layers="2-3"',  # it has four layers
}
OURS, THEIRS, TRACE, ASKING, MEMORY = range(5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a small model under `model`, photos, and one photo.jpg."""
    built = tiny.build()
    built.model.save_pretrained(tmp_path / "model")
    built.processor.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for index in range(6):
        tiny.image(index, (48, 40)).save(tmp_path / "photos" / f"{index}.jpg")
    tiny.image(0, (48, 40)).save(tmp_path / "photo.jpg")
    return tmp_path


@pytest.fixture
def run_snippet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """Runs code as a script in the working folder; returns what it printed."""

    def run(code: str) -> str:
        # A file, because nnsight reads the source of the blocks it traces.
        script = folder / "snippet.py"
        script.write_text(code)
        monkeypatch.chdir(folder)
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_snippets_are_the_ones_known_here() -> None:
    assert len(PYTHON) == 5
    assert set(COMMANDS) == {"demo", "tests", "analyze", "check"}
    assert TEXT.count("```bash") == len(COMMANDS)


def test_the_snippet_for_the_shipped_model_runs(
    run_snippet: Callable[[str], str], folder: Path
) -> None:
    assert len(run_snippet(PYTHON[OURS]).splitlines()) > 2
    assert (folder / "alignment.png").stat().st_size > 10_000


def test_the_snippet_for_a_large_model_runs_on_a_small_one(
    run_snippet: Callable[[str], str], folder: Path
) -> None:
    code = PYTHON[THEIRS]
    for written, instead in STAND_INS.items():
        assert code.count(written) == 1
        code = code.replace(written, instead)
    run_snippet(code)
    assert (folder / "alignment.png").stat().st_size > 10_000


def test_both_models_take_the_same_lines() -> None:
    ours, theirs = (
        [line for line in PYTHON[which].splitlines() if "import" not in line]
        for which in (OURS, THEIRS)
    )
    pairs = zip(ours, theirs, strict=True)
    assert [a.split(" = ")[0] for a, b in pairs if a != b] == ["model", "images"]


def test_the_trace_snippet_runs(run_snippet: Callable[[str], str]) -> None:
    assert "torch.Size" in run_snippet(PYTHON[TRACE])


def test_the_snippet_that_asks_a_plan_runs(run_snippet: Callable[[str], str]) -> None:
    printed = run_snippet(PYTHON[ASKING])
    # One answer for each of the untouched model, the two plans and the means at eight layers.
    answers = printed.splitlines()[-11:]
    assert all(answer.isalpha() for answer in answers)
    assert answers[0] != answers[1]
    assert "random(like=box[0:4, 0:8]" in printed
    assert "layers 4 to 7 (4 of 8)" in printed


def test_the_snippet_for_a_model_in_memory_runs(run_snippet: Callable[[str], str]) -> None:
    assert PYTHON[MEMORY].count(HUB) == 2
    assert "torch.Size" in run_snippet(PYTHON[MEMORY].replace(HUB, '"model"'))


def test_the_check_command_runs(folder: Path) -> None:
    command = COMMANDS["check"].replace(HUB.strip('"'), "model")
    program, *arguments = shlex.split(command)
    assert program == "embedlens"
    done = run_python("-m", program, *arguments, cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "ZeroFFN" in done.stdout


@pytest.mark.full
def test_the_analyze_command_runs(folder: Path) -> None:
    command = COMMANDS["analyze"].replace(HUB.strip('"'), "model")
    program, *arguments = shlex.split(command)
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


def test_files_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if not target.startswith("https://"):
            assert (ROOT / target).is_file(), target
