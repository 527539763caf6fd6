"""One look for all figures, and what several of them draw."""

from .style import CLASS_COLORS, png, save_figure

__all__ = ["CLASS_COLORS", "png", "save_figure"]
