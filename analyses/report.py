"""A self-contained page that reads as a short paper, with figures and tables beside it."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..lens.progress import Progress, silent
from .claims import Claim, claims
from .figures import png, save_figure
from .findings import sentences
from .folders import refuse_existing, written_at_once
from .result import Result
from .sections import Section, section

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """Results, and what has to be said about them as a whole.

    Attributes:
        title: Of the page.
        data: What the model was shown, in a sentence or two.
        limitations: What was not done, and what the numbers do not show.
        results: In the order of the sections.
    """

    title: str
    data: str
    limitations: Sequence[str]
    results: Sequence[Result]

    @property
    def headlines(self) -> list[str]:
        """The first finding of every analysis that measures something."""
        return [sentences(result)[0] for result in self.results if result.name != "token_map"]


@dataclass(frozen=True)
class _Part:
    """One section of the page as the template needs it."""

    result: Result
    text: Section
    findings: Sequence[str]
    picture: str


def check_folder(folder: str | Path, *, overwrite: bool) -> None:
    """Say now what `write_report` would refuse in the end.

    Raises:
        InputError: The folder exists and is not to be overwritten.
    """
    refuse_existing(Path(folder), overwrite=overwrite, mark=PAGE)


def write_report(
    report: Report, folder: str | Path, *, overwrite: bool = False, progress: Progress = silent
) -> Path:
    """Write report.html, figures/ (PNG and PDF) and tables/ (saved results).

    The folder appears complete or not at all.

    Returns:
        The page.

    Raises:
        InputError: The folder exists and is not to be overwritten.
    """
    with written_at_once(folder, overwrite=overwrite, mark=PAGE) as new:
        (new / "figures").mkdir()
        pictures = {}
        for done, result in enumerate(report.results):
            progress("drawing", done, len(report.results))
            figure = result.plot()
            save_figure(figure, new / "figures" / result.name)
            pictures[result.name] = png(figure)
            result.save(new / "tables" / result.name)
        (new / PAGE).write_text(render(report, pictures), encoding="utf-8")
    return Path(folder) / PAGE


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page, with the PNG picture of each result, by name, inside it."""
    parts = [
        _Part(
            result,
            section(result),
            sentences(result),
            b64encode(pictures[result.name]).decode(),
        )
        for result in report.results
    ]
    compared: list[Claim] = claims({result.name: result for result in report.results})
    environment = Environment(
        loader=PackageLoader("embedlens.analyses"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        parts=parts,
        claims=compared,
        facts=_facts(report.results[-1].meta),
        packages=report.results[-1].meta["packages"],
    )


def _unbroken(value: object) -> object:
    """Text whose percent signs stay beside their numbers when lines break."""
    return value.replace(" %", "\N{NO-BREAK SPACE}%") if type(value) is str else value


def _facts(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Model", meta["model"]),
        ("Revision", meta["revision"]),
        ("Size", f"{meta['parameters'] / 1e6:,.1f} million parameters, {meta['layers']} layers"),
        ("Numbers", f"{meta['dtype']} on {meta['device']}, {meta['attention']} attention"),
        ("Seed", meta["seed"]),
        ("Command", meta["command"]),
        ("Time", meta["time"].replace("T", " ").replace("+00:00", " UTC")),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]
