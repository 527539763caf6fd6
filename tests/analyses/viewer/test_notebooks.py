"""In a real kernel, and in the page that a notebook is turned into."""

from __future__ import annotations

import re
from html import unescape
from importlib.metadata import files
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from traitlets.config import Config

from processes import ROOT

pytestmark = pytest.mark.full

CELLS = (
    f"import sys; sys.path += [{str(ROOT / 'tests')!r}, {str(ROOT.parent)!r}]\n"
    "from builders.results import token_map\n"
    "from builders.viewed_tokens import chosen_view",
    "token_map().plot()",
    "view = chosen_view(images=1)\nview",
    "view.selected = [2]\nprint(view.widget.get_state(['selected']))",
    "token_map()",
)


@pytest.fixture(scope="module")
def notebook() -> Any:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    return NotebookClient(made, timeout=600, kernel_name="python3").execute()


def data(notebook: Any, cell: int) -> Any:
    (output,) = [one for one in notebook.cells[cell].outputs if one.output_type != "stream"]
    return output["data"]


def test_a_cell_that_returns_a_figure_shows_it(notebook: Any) -> None:
    assert data(notebook, 1)["image/png"].startswith("iVBORw0KGgo")
    assert 'src="data:image/png;base64,iVBORw0KGgo' in data(notebook, 4)["text/html"]


def test_a_cell_that_returns_a_view_shows_the_widget_and_keeps_the_page(notebook: Any) -> None:
    shown = data(notebook, 2)
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert shown["text/html"].startswith("<iframe")
    (said,) = notebook.cells[3].outputs
    assert said["text"] == "{'selected': [2]}\n"


def test_an_exported_notebook_has_the_page_in_place_of_the_widget(
    notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = next(one for one in files("nbconvert") or () if one.match("templates/lab/conf.json"))
    # Found wherever it is installed, also where this interpreter borrows its packages.
    monkeypatch.setenv("JUPYTER_PATH", str(Path(str(listed.locate())).resolve().parents[3]))
    order = ["text/html", "image/png", "text/plain"]
    config = Config({"NbConvertBase": {"display_data_priority": order}})
    page, _ = HTMLExporter(config=config).from_notebook_node(notebook)
    (inner,) = re.findall(r'srcdoc="([^"]*)"', page)
    assert "chosen" in unescape(inner).lower()
    assert unescape(inner) == unescape(data(notebook, 2)["text/html"].split('srcdoc="')[1][:-11])
