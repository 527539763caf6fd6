"""The Python of every page runs, block after block, with a small model in place of a large one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from processes import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs/how_to").glob("*.md"))
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
# What needs lmms-eval is run beside it: tests/analyses/harness.
BESIDE = {"benchmarks"}
RUNNABLE = [page for page in PAGES if BLOCK.search(page.read_text()) and page.stem not in BESIDE]
# What stands in for a hub id, a GPU, and layers that the small model does not have.
STAND_INS = {
    '"llava-hf/llava-1.5-7b-hf", device="cuda"': '"model", device="cpu"',
    '"llava-hf/llava-1.5-7b-hf"': '"model"',
}
# How many largest differences to a run here a page prints.
SAME_ELSEWHERE = {"remote": 1, "transformer_lens": 2}
FEWER_LAYERS = ('layers="4-7"', 'layers="2-3"')


def label(page: Path) -> str:
    return page.stem


def code_of(page: Path) -> str:
    """All of a page as one script; a block about a large model is told the small one's layers."""
    blocks = []
    for block in BLOCK.findall(page.read_text()):
        code = block
        for written, instead in STAND_INS.items():
            code = code.replace(written, instead)
        blocks.append(code if code == block else code.replace(*FEWER_LAYERS))
    return "\n".join(blocks)


def test_the_pages_that_run_are_the_ones_known_here() -> None:
    known = "change extract inputs look measure nnsight remote start transformer_lens your_model"
    assert sorted(map(label, RUNNABLE)) == known.split()


@pytest.mark.full
@pytest.mark.parametrize("page", RUNNABLE, ids=label)
def test_a_page_runs_from_its_first_block_to_its_last(
    page: Path, run_snippet: Callable[[str], str], folder: Path
) -> None:
    printed = run_snippet(code_of(page))
    pictures = re.findall(r'savefig\("(.*?)"\)', page.read_text())
    assert printed or pictures
    for picture in pictures:
        assert (folder / picture).stat().st_size > 10_000
    if page.stem in SAME_ELSEWHERE:
        differences = re.findall(r"^([\d.e+-]+)$", printed, re.MULTILINE)
        assert len(differences) == SAME_ELSEWHERE[page.stem]
        assert max(map(float, differences)) < 1e-4


def test_both_models_take_the_same_lines() -> None:
    """The page for a large model differs from the one for the small one by model and images."""
    ours, theirs = (
        [line for line in block.splitlines() if "import" not in line]
        for block in BLOCK.findall((ROOT / "docs/start.md").read_text())
    )
    pairs = zip(ours, theirs, strict=True)
    assert [a.split(" = ")[0] for a, b in pairs if a != b] == ["model", "images"]


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_every_command_is_one_of_ours(page: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)\n```", page.read_text(), re.DOTALL)
    for line in (line for block in blocks for line in block.splitlines()):
        assert re.match(
            r"(pip install .* && )?embedlens (demo|analyze|check|run|extract|study)\b"
            r"|pip install -c constraints\.txt |lmms-eval --model embedlens ",
            line,
        ), line
