"""Runs the examples of reference pages and writes what they print below them.

    python docs/write_outputs.py docs/reference/touch.md

For a new example write its `>>>` lines; then read what came out before you keep it.
"""

import contextlib
import doctest
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

BLOCK = re.compile(r"(```pycon\n)(.*?)(\n```)", re.DOTALL)


class _Told(doctest.DocTestRunner):
    """Keeps what one example printed, whatever was expected."""

    def __init__(self) -> None:
        super().__init__(verbose=False)
        self.got = ""

    def report_success(self, out, test, example, got) -> None:
        self.got = got

    def report_failure(self, out, test, example, got) -> None:
        self.got = got

    def report_unexpected_exception(self, out, test, example, raised) -> None:
        last = "".join(traceback.format_exception_only(*raised[:2]))
        self.got = f"Traceback (most recent call last):\n    ...\n{last}"


def lines_with_outputs(block: str, names: dict[str, object]) -> Iterator[str]:
    """The lines of a session, each example followed by what it prints now."""
    for example in doctest.DocTestParser().get_examples(block):
        first, *more = example.source.rstrip("\n").split("\n")
        yield f">>> {first}"
        yield from (f"... {line}".rstrip() for line in more)
        told = _Told()
        fresh = doctest.Example(example.source, want="")
        test = doctest.DocTest([fresh], names, "page", None, 0, None)
        told.run(test, clear_globs=False, out=lambda _: None)
        names.update(test.globs)
        if told.got.strip():
            yield from told.got.rstrip("\n").split("\n")


def write_outputs(page: Path) -> None:
    """Run a page from top to bottom, in an empty folder."""
    names: dict[str, object] = {"__name__": "__main__"}
    text = page.read_text()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        new = BLOCK.sub(lambda b: b[1] + "\n".join(lines_with_outputs(b[2], names)) + b[3], text)
    page.write_text(new)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in sys.argv[1:]:
        write_outputs(Path(name).resolve())
