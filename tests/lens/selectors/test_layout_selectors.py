"""Selecting and drawing tokens of tiled images, of videos, and of tokens without a place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from embedlens import Batch, InputError, Unsupported
from embedlens.analyses import Result
from embedlens.interventions import FrameIs, TileIs, parse_selector
from embedlens.lens.visual_tokens import VisualTokens

LENGTH = 20


def batch(kinds: list[str], places: list[tuple[int, int, int, int]]) -> Batch:
    """One sample whose visual tokens start at position 2; places are (tile, time, row, col)."""
    n = len(kinds)
    tile, time, row, col = (np.array(column) for column in zip(*places, strict=True))
    zero, box = np.zeros(n, dtype=np.int64), np.full((n, 4), np.nan)
    visual = VisualTokens(
        zero, zero, tile, time, row, col, np.arange(2, n + 2), np.array(kinds), box
    )
    ids = torch.ones(1, LENGTH, dtype=torch.long)
    return Batch({"input_ids": ids, "attention_mask": ids}, visual, ("",), ((),))


PATCHES = [(tile, 0, row, col) for tile in range(2) for row in range(2) for col in range(2)]
TILED = batch(["patch"] * 8 + ["newline", "separator"], [*PATCHES, (1, 0, -1, -1), (1, 0, -1, -1)])
FILMED = batch(["patch"] * 4, [(0, time, 0, col) for time in range(2) for col in range(2)])
LATENT = batch(["latent"] * 4, [(0, 0, -1, -1)] * 4)


def chosen(text: str, of: Batch) -> list[int]:
    return np.flatnonzero(parse_selector(text).select(of).prompt[0]).tolist()


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("all", list(range(LENGTH))),
        ("patch", list(range(2, 10))),
        ("newline", [10]),
        ("separator", [11]),
        ("visual & ~patch", [10, 11]),
        ("tile[1]", list(range(6, 12))),
        ("tile[0] & box[0:1, 0:2]", [2, 3]),
        ("box[1:2, 0:1]", [4, 8]),
        ("latent", []),
        ("frame[0]", list(range(2, 12))),
    ],
)
def test_selectors_of_places_and_kinds(text: str, positions: list[int]) -> None:
    assert chosen(text, TILED) == positions


def test_all_is_every_position_but_padding_and_what_is_generated() -> None:
    mask = torch.ones(1, LENGTH, dtype=torch.long)
    mask[0, 0] = 0
    padded = replace(TILED, inputs={**TILED.inputs, "attention_mask": mask})
    found = parse_selector("all").select(padded)
    assert found.prompt[0].tolist() == [False, *[True] * (LENGTH - 1)]
    assert found.generated.tolist() == [True]


def test_frames_of_a_video() -> None:
    assert chosen("frame[1]", FILMED) == [4, 5]
    assert chosen("frame[1] & box[0:1, 1:2]", FILMED) == [5]


def test_a_box_of_tokens_without_a_place_is_refused() -> None:
    assert chosen("latent", LATENT) == [2, 3, 4, 5]
    with pytest.raises(Unsupported, match=r"image 0 of sample 0 .*latent.*image\[i\]"):
        parse_selector("box[0:1, 0:1]").select(LATENT)


@pytest.mark.parametrize("selector", [TileIs(3), FrameIs(2)])
def test_indices_round_trip_as_text(selector: Any) -> None:
    assert parse_selector(str(selector)) == selector


@pytest.mark.parametrize("text", ["tile[x]", "frame[-1]", "video[0]"])
def test_what_is_no_index_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(InputError, match=r"\^"):
        parse_selector(text)


# ---------------------------------------------------------------- figures


def token_map(size: tuple[int, int]) -> Result:
    """Two tiles side by side, a thumbnail over both, and a newline; everything alive."""
    width, height = size
    rows: list[dict[str, Any]] = []
    for tile, (left, right) in enumerate([(0, width / 2), (width / 2, width), (0, width)]):
        for cell in range(4):
            row, col = divmod(cell, 2)
            step = (right - left) / 2
            at = {"left": left + col * step, "right": left + (col + 1) * step}
            at |= {"top": row * height / 2, "bottom": (row + 1) * height / 2}
            rows.append({"tile": tile, "kind": "patch", "row": row, "col": col, **at})
    rows.append({"tile": 2, "kind": "newline", "row": -1, "col": -1})
    table: Any = {name: [row.get(name) for row in rows] for name in rows[0]}
    n = len(rows)
    cells = pd.DataFrame({"sample": 0, "image": 0, "position": range(n), **table})
    cells["class"] = pd.Categorical(["alive"] * n, ["sink", "dead", "alive"])
    cells["word_1"] = pd.Series(list("abcdefghijklm"), dtype="str")
    cells["cosine_1"] = 0.5
    picture = torch.zeros((height, width, 3), dtype=torch.uint8)
    return Result("token_map", cells, {"image/0/0": picture}, {"image_sizes": {"0/0": [*size]}})


def test_overlapping_tiles_are_drawn_as_views_of_their_own() -> None:
    figure = token_map((80, 40)).plot()
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Image 1, view 1: 8 of 8 alive",
        "Image 1, view 2: 4 of 4 alive",
    ]
    for axes, cells in zip(figure.axes, (8, 4), strict=True):
        assert len(axes.findobj(AxesImage)) == 1
        tints = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_alpha()]
        assert len(tints) == cells  # the newline is nowhere
        area = sum(p.get_width() * p.get_height() for p in tints)
        assert area == pytest.approx(80 * 40)
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert words == set("abcdefghijkl")
