"""Every public name has an example in the reference, and every example prints what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from processes import ROOT

PAGES = sorted((ROOT / "docs/reference").glob("*.md"))
FACES = (
    "embedlens",
    "embedlens.lens",
    "embedlens.interventions",
    "embedlens.analyses",
    "embedlens.lens.scenes",
)
ELSEWHERE = {"lens", "interventions", "analyses", "scenes"}  # faces: a page is about each
EXAMPLES = re.compile(r"```pycon\n(.*?)\n```", re.DOTALL)


def label(page: Path) -> str:
    return page.stem


def in_docstrings() -> dict[str, Any]:
    """Public things with an example in their docstring."""
    faces = (importlib.import_module(face) for face in FACES)
    shown = {name: getattr(face, name) for face in faces for name in face.__all__}
    own = {name: thing for name, thing in shown.items() if not inspect.ismodule(thing)}
    return {name: thing for name, thing in own.items() if ">>>" in (inspect.getdoc(thing) or "")}


def examples_by_name() -> dict[str, str]:
    """What stands below the heading of every name, from all pages."""
    found = {}
    for page in PAGES:
        for section in re.split(r"^#{2,} ", page.read_text(), flags=re.MULTILINE)[1:]:
            name = section.split("\n", 1)[0].strip()
            found[name] = "\n".join(EXAMPLES.findall(section))
    return found


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_has_an_example(face: str) -> None:
    shown, known = set(importlib.import_module(face).__all__) - ELSEWHERE, examples_by_name()
    used = {name for name in shown if re.search(rf"\b{name}\b", known.get(name, ""))}
    missing = shown - used - set(in_docstrings())
    if face == "embedlens.lens.scenes":
        missing |= {"scenes"} - set(known)
    assert not missing, f"no example in docs/reference or a docstring: {sorted(missing)}"


@pytest.mark.full
def test_the_examples_in_docstrings_print_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stands for itself."""
    monkeypatch.chdir(tmp_path)
    found = in_docstrings()
    assert "scenes" in found
    for name, thing in found.items():
        read = doctest.DocTestParser().get_doctest(inspect.getdoc(thing), {}, name, None, 0)
        said: list[str] = []
        result = doctest.DocTestRunner().run(read, out=said.append)
        assert result.attempted
        assert not result.failed, "".join(said)


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=label)
def test_the_examples_print_what_they_say(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    # The same line numbers as the page: blank lines, so that no fence is taken for output.
    session, end = "", 0
    for block in EXAMPLES.finditer(text):
        session += "\n" * text.count("\n", end, block.start(1)) + block[1]
        end = block.end(1)
    read = doctest.DocTestParser().get_doctest(session, {}, page.stem, str(page), 0)
    said: list[str] = []
    result = doctest.DocTestRunner().run(read, out=said.append)
    assert result.attempted > 10
    assert not result.failed, "".join(said)
