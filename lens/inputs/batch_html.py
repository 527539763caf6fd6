"""How a batch shows itself in a notebook: its images, prompts and visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup
from PIL.Image import Image

from ..html_parts import block, note, share_bar, table, thumbnail
from ..image_rows import image_rows
from .prompts import shorten

_MOST_SAMPLES, _MOST_IMAGES = 4, 4


def batch_html(
    title: str,
    images: Sequence[Sequence[Image]],
    prompts: Sequence[str],
    tokens: pd.DataFrame,
    shares: Mapping[str, float] | None,
) -> str:
    """The first samples as a table, and how the classes share the tokens where they are known."""
    rows = []
    for sample, prompt in enumerate(prompts[:_MOST_SAMPLES]):
        mine = tokens[tokens["sample"] == sample]
        pictures = Markup(" ").join(map(thumbnail, images[sample][:_MOST_IMAGES]))
        layouts = [row.layout for row in image_rows(mine, _MOST_IMAGES)]
        told = Markup("<br>").join(
            f"{len(mine)} tokens: " * (not i) + one for i, one in enumerate(layouts)
        )
        rows.append((sample, pictures or "not known", shorten(prompt, 200), told))
    left = len(prompts) - len(rows)
    parts = [table(("sample", "images", "prompt", "visual tokens"), rows)]
    parts += [note(f"and {left} more samples")] * bool(left)
    return block(title, *parts, *([] if shares is None else [share_bar(shares)]))
