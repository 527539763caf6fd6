"""One look for all figures: palette, sizes, fonts, and how they become files."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ...lens.class_colors import CLASS_COLORS as CLASS_COLORS  # figures take all colours here

WIDTH = 7.0
"""Width of a figure in inches: a text column of a paper."""

NOTEBOOK_DPI = 110

INK = "#222222"
MUTED = "#767676"
ACCENT, SECOND, THIRD = "#0072B2", "#CC79A7", "#009E73"
"""Colours of curves that stand for no class; they differ for colour-blind readers too."""
CHANCE: dict[str, Any] = {"color": MUTED, "linestyle": (0, (4, 2))}
"""How every control line is drawn."""

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    **dict.fromkeys(("font.size", "axes.labelsize", "legend.fontsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 3),
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "axes.unicode_minus": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "text.color": INK,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "figure.dpi": 100,
    "savefig.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """Everything drawn inside looks alike; settings outside are left as they are."""
    with sns.axes_style("ticks"), matplotlib.rc_context(_RC):  # type: ignore[arg-type]
        yield


class NotebookFigure(Figure):
    """A figure that a notebook shows when a cell returns it, with any backend.

    Jupyter draws figures of its own accord only once pyplot has made one.
    """

    def _repr_png_(self) -> bytes:
        return png(self, dpi=NOTEBOOK_DPI)


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure that pyplot does not know, so that nothing piles up or pops up."""
    spacing = ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.05, hspace=0.04, wspace=0.03)
    figure = NotebookFigure(figsize=(width, height), layout=spacing)
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, *, grid: str | None = "y") -> None:
    """Remove the box, and put a faint grid behind the data."""
    sns.despine(ax=axes)
    axes.set_axisbelow(True)
    if grid in ("x", "y"):
        axes.grid(True, axis=grid)  # type: ignore[arg-type]


def png(figure: Figure, *, dpi: int = 200) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def save_figure(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.pdf, the latter with text that can be searched and edited."""
    stem.with_suffix(".png").write_bytes(png(figure))
    with style():
        figure.savefig(stem.with_suffix(".pdf"), metadata={"CreationDate": None})


def printable(word: str) -> str:
    """The word as the figure's font can write it; other characters by their code."""
    glyphs = _glyphs()
    shown = "".join(c if ord(c) in glyphs and c.isprintable() else f"U+{ord(c):04X}" for c in word)
    return shown.strip() or "␣"


@cache
def _glyphs() -> frozenset[int]:
    font = FT2Font(findfont(FontProperties(family="DejaVu Sans")))
    return frozenset(font.get_charmap())
