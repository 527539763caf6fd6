"""Notebooks run from top to bottom, and are kept as somebody who reads them should see them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from processes import ROOT, run_python

FOLDER = ROOT / "examples/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def label(path: Path) -> str:
    return path.stem


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_the_notebooks_are_those_of_the_site() -> None:
    listed = re.findall(
        r"^/examples/notebooks/(\w+)$", (ROOT / "docs/notebooks.md").read_text(), re.M
    )
    assert sorted(listed) == [path.stem for path in NOTEBOOKS]
    assert len(listed) == 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_a_notebook_is_kept_with_its_outputs(path: Path) -> None:
    assert path.stat().st_size < 500_000
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len(outputs) >= 3
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert str(ROOT) not in path.read_text()
    assert "widget-state" not in path.read_text()  # it would make a page fetch scripts


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    done = run_python(
        str(FOLDER / "execute.py"), path.stem, "--out", str(tmp_path), cwd=tmp_path, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert code_cells(tmp_path / path.name)[-1].execution_count
