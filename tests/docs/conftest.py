"""A folder to run documentation in: a small model and photos under the names that pages use."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny


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
