"""How a readout shows itself in a notebook: words in rows, or on the grid that its states have."""

from __future__ import annotations

from typing import Any

import numpy as np
from einops import rearrange
from markupsafe import Markup
from numpy.typing import NDArray

from ..html_parts import block, note, table, told

_MOST_ROWS, _MOST_COLUMNS, _MOST_WORDS = 24, 24, 5
_VIEW = "view(batch) shows the words at their places in the image"


def readout_html(title: str, entries: NDArray[Any], scores: NDArray[np.float32]) -> str:
    """A table of the first states.

    Args:
        title: What stands above it.
        entries: Words, or ids where there are none, ``[..., k]``. States ``[row, column]`` are
            shown as that grid, each with its first word; all others in rows.
        scores: ``[..., k]``.
    """
    *shape, _ = entries.shape
    if len(shape) == 2 and shape[1] <= _MOST_COLUMNS and entries.size:
        rows = [
            [row, *(_first(*state) for state in zip(entries[row], scores[row], strict=True))]
            for row in range(min(shape[0], _MOST_ROWS))
        ]
        columns, of = ("", *map(str, range(shape[1]))), shape[0]
    else:
        flat, values = (rearrange(a, "... k -> (...) k") for a in (entries, scores))
        rows = [
            [state, _words(flat[state], values[state])]
            for state in range(min(len(flat), _MOST_ROWS))
        ]
        columns, of = ("state", "nearest first"), len(flat)
    more = [note(f"and {of - len(rows)} more rows")] * (of > len(rows))
    return block(title, table(columns, rows), *more, note(_VIEW))


def _first(entries: NDArray[Any], scores: NDArray[np.float32]) -> Markup:
    listed = ", ".join(f"{word} {told(float(s))}" for word, s in zip(entries, scores, strict=True))
    return Markup('<span title="{}">{}</span>').format(listed, entries[0])


def _words(entries: NDArray[Any], scores: NDArray[np.float32]) -> Markup:
    pairs = list(zip(entries, scores, strict=True))[:_MOST_WORDS]
    word = Markup('{} <span style="opacity:.6;font-size:85%">{}</span>')
    return Markup(" &nbsp; ").join(word.format(entry, told(float(s))) for entry, s in pairs)
