"""The rules, the most demanding first, and what a wrong number of images looks like."""

from __future__ import annotations

from dataclasses import replace

from ...errors import InputError
from ..layout_inputs import Evidence, Explanation
from . import (
    grid_thw as grids,
)
from . import (
    learned_queries as latents,
)
from . import (
    newline_rows as lines_of_text,
)
from . import (
    patch_coordinates as positions,
)
from . import (
    pooled_patches as pooled,
)
from . import (
    tiled_raster as canvas,
)
from . import (
    tiles,
)
from . import (
    video_frames as films,
)

# A tensor that names the grid is better evidence than a number of tokens that happens to be a
# square, so that comes last.
RULES = (
    canvas.explain_thumbnail_first,
    canvas.explain_thumbnail_last,
    pooled.explain,
    positions.explain,
    grids.explain,
    lines_of_text.explain,
    tiles.explain,
    films.explain,
)
LATENT_RULES = (tiles.explain, latents.explain)


def explain(evidence: Evidence) -> Explanation | None:
    """What the first rule says that explains every visual position exactly; None if none does.

    Raises:
        InputError: The layout is understood, and is that of another number of images.
    """
    if not evidence.total:
        return [[] for _ in evidence.positions]
    found = _first(evidence)
    if found is None:
        _refuse_numbers(evidence)
    return found


def _first(evidence: Evidence) -> Explanation | None:
    for rule in LATENT_RULES if evidence.latents else RULES:
        found = rule(evidence)
        if found is not None:
            return found
    return None


def _refuse_numbers(evidence: Evidence) -> None:
    if evidence.counts is not None:
        free = _first(replace(evidence, counts=None)) or []
        for sample, (given, layouts) in enumerate(zip(evidence.counts, free, strict=False)):
            if given != len(layouts):
                raise InputError(
                    f"sample {sample}: {len(evidence.positions[sample])} visual positions are "
                    f"those of {len(layouts)} images, and {given} were given"
                )
    pictures = tiles.pictures(evidence)
    if pictures is not None and pictures[0] != pictures[1]:
        raise InputError(
            f"{evidence.total} visual positions are those of {pictures[0]:g} images, and the "
            f"image tensor has {pictures[1]}"
        )
