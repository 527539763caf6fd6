"""The rules in the order in which they are tried, and what a wrong number of images looks like.

A rule is a module of this folder with a function ``explain``. To add one, write its file and put
it into ``RULES``: before every rule that asks less of the inputs than it does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from ...errors import InputError
from ..layout_inputs import LayoutInputs, Layouts
from . import (
    grid_thw,
    learned_queries,
    newline_rows,
    patch_coordinates,
    pooled_patches,
    tiled_raster,
    tiles,
    video_frames,
)


class Rule(Protocol):
    """One way in which visual tokens can be laid out."""

    def explain(self, inputs: LayoutInputs, /) -> Layouts | None:
        """The layout of every image; None unless it fits every visual position exactly."""


# A tensor that names the grid says more than a number of tokens that happens to be a square, so
# that comes last.
RULES: tuple[Rule, ...] = (
    tiled_raster,
    pooled_patches,
    patch_coordinates,
    grid_thw,
    newline_rows,
    tiles,
    video_frames,
)
LATENT_RULES: tuple[Rule, ...] = (tiles, learned_queries)


def explain(inputs: LayoutInputs) -> Layouts | None:
    """What the first rule says that explains every visual position exactly; None if none does.

    InputError where the layout is understood, and is that of another number of images.
    """
    if not inputs.total:
        return [[] for _ in inputs.positions]
    found = _first(inputs)
    if found is None:
        _refuse_numbers(inputs)
    return found


def _first(inputs: LayoutInputs) -> Layouts | None:
    for rule in LATENT_RULES if inputs.are_latents else RULES:
        found = rule.explain(inputs)
        if found is not None:
            return found
    return None


def _refuse_numbers(inputs: LayoutInputs) -> None:
    if inputs.counts is not None:
        free = _first(replace(inputs, counts=None)) or []
        for sample, (given, layouts) in enumerate(zip(inputs.counts, free, strict=False)):
            if given != len(layouts):
                raise InputError(
                    f"sample {sample}: {len(inputs.positions[sample])} visual positions are "
                    f"those of {len(layouts)} images, and {given} were given"
                )
    pictures = tiles.pictures_needed_and_given(inputs)
    if pictures is not None and pictures[0] != pictures[1]:
        raise InputError(
            f"{inputs.total} visual positions are those of {pictures[0]:g} images, and the "
            f"image tensor has {pictures[1]}"
        )
