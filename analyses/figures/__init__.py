"""Figures of results: one file per analysis, one look for all."""

from .registry import FIGURES
from .style import CLASS_COLORS, png, save_figure

__all__ = ["CLASS_COLORS", "FIGURES", "png", "save_figure"]
