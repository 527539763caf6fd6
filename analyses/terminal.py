"""What the command line shows: a progress bar, findings, a table, and one line when it fails."""

import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from ..lens.errors import EmbedlensError
from ..lens.progress import Progress
from .check.findings import CheckReport

if TYPE_CHECKING:  # it brings torch
    from .effect_of_plan import PlanEffect


class Interrupted(Exception):
    """A command was interrupted; the message says what is left of its work."""


_FIRST = "loading the model"


def quiet() -> None:
    """Keep libraries from writing between our lines."""
    import huggingface_hub.utils as hub  # noqa: PLC0415 takes seconds: `--help` needs none of it
    import transformers.utils.logging as transformers_log  # noqa: PLC0415 takes seconds

    hub.disable_progress_bars()  # type: ignore[attr-defined]
    hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_log.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_log.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextmanager
def progress_bar(*, stages: bool = False) -> Iterator[Progress]:
    """A progress bar on a terminal; elsewhere nothing, or with ``stages`` a line for each one."""
    console = Console()
    if stages and not console.is_terminal:
        lines = _StageLines(console)
        yield lines.show
        lines.finish()
        return
    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(_FIRST, total=None)

        def show(doing: str, done: int, total: int) -> None:
            bar.update(task, description=doing, completed=done, total=total)

        yield show


class _StageLines:
    """Says of every stage that is done how long it took: a refusal prints nothing but itself."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._doing, self._since = _FIRST, time.monotonic()

    def show(self, doing: str, done: int, total: int) -> None:
        if doing != self._doing:
            self.finish()
            self._doing, self._since = doing, time.monotonic()

    def finish(self) -> None:
        took = time.monotonic() - self._since
        self._console.print(f"{took:5.0f} s  {self._doing}", highlight=False, soft_wrap=True)


def show_findings(headlines: Sequence[str], page: Path) -> None:
    """Print the findings, and where the rest stands."""
    console = Console(highlight=False, markup=False)
    for line in headlines:
        console.print(f"• {line}", soft_wrap=not console.is_terminal)
    console.print(f"\nThe whole story: {page}", soft_wrap=True)


def show_lines(lines: Sequence[str]) -> None:
    """Print lines as they are, however long."""
    console = Console(highlight=False, markup=False)
    for line in lines:
        console.print(line, soft_wrap=True)


def show_effect(effect: "PlanEffect", names: Sequence[str]) -> None:
    """Print what a plan does and what it did to every image's answer."""
    show_lines([effect.words, effect.cost])
    table = Table("image", "untouched", "with the plan", "probability", "with the plan", "change")
    columns = ["untouched", "with_plan", "probability_untouched", "probability_with_plan", "change"]
    for name, row in zip(names, effect.frame[columns].values.tolist(), strict=True):
        before, after, p, q, change = row
        cells = (name, before, after, f"{p:.3f}", f"{q:.3f}", f"{change:+.2f} nats")
        table.add_row(*map(Text, cells))
    Console(highlight=False, markup=False).print(table)
    answers = list(dict.fromkeys(effect.frame["answer"]))
    told = repr(answers[0]) if len(answers) == 1 else "what the untouched model writes"
    show_lines([f"Probability and change (of its logarithm) are those of {told}."])


def show_checks(found: CheckReport) -> None:
    """Print what was checked as a table."""
    colours = {"ok": "green", "refused": "yellow", "failed": "red"}
    table = Table("check", "result", "detail", title=f"embedlens check {found.about['model']}")
    for finding in found.findings:
        outcome = Text(finding.verdict, style=colours[finding.verdict])
        table.add_row(Text(finding.name), outcome, Text(finding.detail))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(f"{found.conclusion}\n{found.versions}", soft_wrap=True)


# Arguments of Python that a message may name, and the options that they are here.
_NAMES = ("overwrite", "trust_remote_code", "dtype", "device", "revision")
_OPTIONS = {name: f"--{name.replace('_', '-')}" for name in _NAMES}
_OPTIONS["attn_implementation"] = "--attention"
# (In double quotes transformers names what it would take.)
_OF_PYTHON = re.compile(rf"(?<!\")\b({'|'.join(_OPTIONS)})=(True|[\w.:]+|'[^']*')")


def _in_the_shell(argument: re.Match[str]) -> str:
    option, value = _OPTIONS[argument[1]], argument[2].strip("'")
    return option if value == "True" else f"{option} {value}"


def refusal(error: Exception) -> str | None:
    """The message about what the user can mend; None for everything else."""
    if isinstance(error, EmbedlensError):
        return _OF_PYTHON.sub(_in_the_shell, str(error))
    # typer brings its own copy of click from some version on: know its errors by what they can.
    usage = getattr(error, "format_message", None)
    return None if usage is None else f"{usage()} (see embedlens --help)"
