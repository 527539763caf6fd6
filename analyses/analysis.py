"""An analysis, what it returns, and the registry in which both are found by name.

A result knows its name only: the figure and the words are those of the analysis registered under
that name, so that a result read from disk draws itself too. Importing the folder of an analysis
registers it; folders beside this file are imported when something is first looked up.
"""

import html
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from ..lens.errors import InputError
from .claim import Claim
from .extent import Passes, a_few
from .figures import png
from .figures.style import NOTEBOOK_DPI
from .provenance import provenance_line
from .report_inputs import Material
from .result_folder import read_folder, write_folder
from .viewer import View


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of an analysis.

    Attributes:
        name: Which analysis, for instance ``alignment``; decides the figure.
        frame: Tidy table, one row per observation, with the default row index.
        tensors: Arrays too large for the table.
        meta: What a reader needs to repeat the analysis: plain values, tuples and mappings of them.
    """

    name: str
    frame: pd.DataFrame
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        tensors = f", {len(self.tensors)} tensors" * bool(self.tensors)
        return f"Result({self.name}: {len(self.frame)} rows{tensors}; plot(), frame, save())"

    def plot(self) -> Figure:
        """The figure of this analysis, not shown and not known to pyplot.

        Raises:
            InputError: There is no figure for a result of this name.
        """
        known = registered()
        if self.name not in known:
            names = ", ".join(sorted(known))
            raise InputError(f"no figure for a result named {self.name!r}; figures: {names}")
        return known[self.name].figure(self)

    def view(self, most: int | None = None) -> View:
        """Pictures of the tokens to look at and point into, where the analysis has them.

        Args:
            most: Show no more pictures than this; all when None.

        Raises:
            InputError: There is none for a result of this name.
        """
        view = find(self.name).view
        if view is None:
            has = ", ".join(name for name, known in registered().items() if known.view is not None)
            raise InputError(f"no view of a result named {self.name!r}; there are: {has}")
        return view(self, most)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder with a parquet table, safetensors and a JSON record.

        The folder appears complete or not at all.

        Args:
            folder: Where to; its parents are made.
            overwrite: Replace an older saved result. Any other folder is never replaced.

        Returns:
            The folder.

        Raises:
            InputError: The folder exists, the table has its own row index, or a value would not
                come back as it went.
        """
        write_folder(
            Path(folder), self.name, self.frame, self.tensors, self.meta, overwrite=overwrite
        )
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Result":
        """Read what `save` wrote.

        Raises:
            InputError: The folder is missing, is not a saved result, or is damaged.
        """
        return cls(*read_folder(Path(folder)))

    def _repr_html_(self) -> str:
        picture = b64encode(png(self.plot(), dpi=NOTEBOOK_DPI)).decode()
        rows = self.frame.head(8).to_html(index=False, border=0, float_format="{:.3f}".format)
        return (
            f"<h4>{html.escape(self.name)}</h4>{rows}"
            f"<p>{len(self.frame)} rows</p>"
            f'<img alt="{html.escape(self.name)}" style="max-width:100%" '
            f'src="data:image/png;base64,{picture}">'
            f"<p><small>{html.escape(provenance_line(self.meta))}</small></p>"
        )


def _nothing(_: Result) -> str:
    """No sentence about the data."""
    return ""


def _no_table(_: Result) -> None:
    """No table."""


def _no_claims(_: Result) -> list[Claim]:
    """The paper claims nothing of the kind."""
    return []


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything of one analysis.

    Attributes:
        name: Of the analysis and of its results.
        run: Measures what a report is about; None where it has to be told more than a report's
            material holds, such as plans: its own function is then called instead.
        figure: Draws a result.
        doing: What is being done while it runs, for a progress bar.
        needs: Fields of `Material` without which it cannot run, such as ``markers``.
        heading: The question.
        method: How the numbers come about, in a sentence or two.
        data: One more sentence of method, about the data of a result.
        caption: What the figure shows.
        findings: A result in sentences, the most important first; their numbers and their wording
            come from its table.
        claims: The paper's claims that a result can speak to.
        table: A small table for the report, every cell in words; None for none.
        view: The tokens of a result to look at and point into, in some of its pictures or (None)
            in all; None where there is nothing of the kind.
        passes: How many passes of one prompt it takes, about; what a report says beforehand of its
            time comes from that.
        headline: Whether the first finding belongs into the summary.
        by_default: Whether a report has it without being asked for it; what takes long is asked
            for by name.
        order: Place in the report, low first.
        claims_order: Place of the claims among those of other analyses, low first.
    """

    name: str
    run: Callable[[Material], Result] | None
    figure: Callable[[Result], Figure]
    doing: str
    heading: str
    method: str
    caption: str
    findings: Callable[[Result], list[str]]
    claims: Callable[[Result], list[Claim]] = _no_claims
    data: Callable[[Result], str] = _nothing
    table: Callable[[Result], pd.DataFrame | None] = _no_table
    view: Callable[[Result, int | None], View] | None = None
    needs: tuple[str, ...] = ()
    passes: Passes = a_few
    headline: bool = True
    by_default: bool = True
    order: int = 100
    claims_order: int = 100

    def lacks(self, material: Material) -> list[str]:
        """What of its needs the material does not have."""
        return [name for name in self.needs if getattr(material, name) is None]


_REGISTERED: dict[str, Analysis] = {}


def register(analysis: Analysis) -> None:
    """Make an analysis known to results, the report and the command line; ValueError if twice."""
    if analysis.name in _REGISTERED:
        raise ValueError(f"there is an analysis named {analysis.name!r} already")
    _REGISTERED[analysis.name] = analysis


def registered() -> dict[str, Analysis]:
    """Every analysis by name, in the order of the report."""
    _import_folders()
    return dict(sorted(_REGISTERED.items(), key=lambda item: (item[1].order, item[0])))


def find(name: str) -> Analysis:
    """The analysis of this name; InputError if there is none."""
    known = registered()
    if name not in known:
        raise InputError(f"no analysis named {name!r}; analyses: {', '.join(known)}")
    return known[name]


@cache
def _import_folders() -> None:
    for found in iter_modules([str(Path(__file__).parent)]):
        if found.ispkg:
            import_module(f"{__package__}.{found.name}")
