"""A self-contained page that reads as a short paper, with figures and tables beside it."""

from base64 import b64encode
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...lens.progress import Progress, silent
from ..analysis import Analysis, Result, find, registered
from ..claim import Claim, judged
from ..complete_folders import written_at_once
from ..figures import save_figure
from ..report_inputs import MOST_PICTURES
from ..statistics import MIN_IMAGES
from ..viewer.static_page import frame, script_source
from .page_environment import page_environment
from .report_folder import PAGE, REPORT

_FACTS = (
    ("Model", "model", "{model}"),
    ("Revision", "revision", "{revision}"),
    ("Size", "parameters", "{millions:,.1f} million parameters, {layers} layers"),
    ("Numbers", "dtype", "{dtype} on {device}, {attention} attention"),
    ("Seed", "seed", "{seed}"),
    ("Command", "command", "{command}"),
    ("Time", "time", "{utc}"),
)


@dataclass(frozen=True)
class Report:
    """Results, and what has to be said about them as a whole."""

    title: str  # of the page
    data: str  # what the model was shown, in a sentence or two
    limitations: Sequence[str]  # what was not done, and what the numbers do not show
    results: Sequence[Result]  # in the order of the sections

    @property
    def headlines(self) -> list[str]:
        """The first finding of every analysis that measures something."""
        told = [(find(result.name), result) for result in self.results]
        return [analysis.findings(result)[0] for analysis, result in told if analysis.headline]


@dataclass(frozen=True)
class _Part:
    """One section of the page as the template needs it."""

    result: Result
    analysis: Analysis
    picture: str
    view: Markup | None


def claims(results: Iterable[Result]) -> list[Claim]:
    """The paper's claims that the results of registered analyses can speak to."""
    known = registered()
    told = [(known[result.name], result) for result in results if result.name in known]
    told.sort(key=lambda pair: pair[0].claims_order)
    return judged([claim for analysis, result in told for claim in analysis.claims(result)])


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
    with written_at_once(folder, overwrite=overwrite, mark=REPORT) as new:
        (new / "figures").mkdir()
        pictures = {}
        for done, result in enumerate(report.results):
            progress("drawing", done, len(report.results))
            drawn = new / "figures" / result.name
            save_figure(result.plot(), drawn)
            pictures[result.name] = drawn.with_suffix(".png").read_bytes()
            result.save(new / "tables" / result.name)
        (new / PAGE).write_text(render(report, pictures), encoding="utf-8")
    return Path(folder) / PAGE


def render(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The page, with the PNG picture of each result, by name, inside it."""
    environment = page_environment("embedlens.analyses.report")
    # What the results say of how they came about, the last one first.
    said = ({k: v for k, v in r.meta.items() if v is not None} for r in reversed(report.results))
    meta = ChainMap(*said)
    return environment.get_template("report.html.j2").render(
        report=report,
        parts=[_part(result, pictures[result.name]) for result in report.results],
        script_source=Markup(script_source()),
        claims=claims(report.results),
        min_images=MIN_IMAGES,
        facts=_facts(meta),
        packages=meta.get("packages", {}),
    )


def _part(result: Result, picture: bytes) -> _Part:
    analysis = find(result.name)
    view = None
    if analysis.view is not None:
        # The report is light in the dark too.
        view = Markup(frame({**analysis.view(result, MOST_PICTURES).data, "theme": "light"}))
    return _Part(result, analysis, b64encode(picture).decode(), view)


def _facts(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run; what no result says is left out."""
    written = {
        "millions": meta.get("parameters", 0) / 1e6,
        "utc": meta.get("time", "").replace("T", " ").replace("+00:00", " UTC"),
    }
    values = {**meta, **written}
    return [(name, text.format_map(values)) for name, needs, text in _FACTS if needs in meta]
