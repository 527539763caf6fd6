"""Visual tokens by pixels, by rows and columns from either end, and by their neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import Batch, InputError, Unsupported
from embedlens.interventions import Box, Columns, Dilated, Name, Pixels, Rows, parse_selector
from embedlens.lens.visual_tokens import VisualTokens

# One image in two tiles of 2 x 3 and 3 x 2 cells, side by side, a newline behind the first.
CELLS = [(0, r, c) for r in range(2) for c in range(3)] + [
    (1, r, c) for r in range(3) for c in range(2)
]
SIZES = {0: (2, 3, 0.0), 1: (3, 2, 60.0)}  # rows, columns, left edge; tiles are 60 x 60 pixels


def box_of(tile: int, row: int, col: int) -> tuple[float, float, float, float]:
    rows, cols, left = SIZES[tile]
    wide, tall = 60 / cols, 60 / rows
    return left + col * wide, row * tall, left + (col + 1) * wide, (row + 1) * tall


def tiled() -> Batch:
    n = len(CELLS) + 1
    tile, row, col = (
        np.array([*column, last])
        for column, last in zip(zip(*CELLS, strict=True), (0, -1, -1), strict=True)
    )
    box = np.array([*(box_of(*cell) for cell in CELLS), [np.nan] * 4])
    zero = np.zeros(n, dtype=np.int64)
    kind = np.array(["patch"] * (n - 1) + ["newline"])
    visual = VisualTokens(zero, zero, tile, zero, row, col, np.arange(2, n + 2), kind, box)
    ids = torch.ones(1, n + 4, dtype=torch.long)
    return Batch({"input_ids": ids, "attention_mask": ids}, visual, ("",), ((),))


TILED = tiled()


def chosen(text: str, batch: Batch = TILED) -> list[tuple[int, int, int]]:
    """The cells that a selector means, by their positions."""
    found = np.flatnonzero(parse_selector(text).select(batch).prompt[0])
    return [CELLS[position - 2] for position in found]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("row[-1]", lambda t, r, c: r == SIZES[t][0] - 1),
        ("row[0]", lambda t, r, c: r == 0),
        ("row[2]", lambda t, r, c: r == 2),
        ("row[-3]", lambda t, r, c: t == 1 and r == 0),
        ("row[5]", lambda t, r, c: False),
        ("column[-1]", lambda t, r, c: c == SIZES[t][1] - 1),
        ("column[-2:]", lambda t, r, c: c >= SIZES[t][1] - 2),
        ("column[1:]", lambda t, r, c: c >= 1),
        ("row[:2]", lambda t, r, c: r < 2),
        ("row[1:-1]", lambda t, r, c: 1 <= r < SIZES[t][0] - 1),
        ("row[-1] & column[0] & tile[1]", lambda t, r, c: (t, r, c) == (1, 2, 0)),
    ],
)
def test_rows_and_columns_are_counted_in_their_own_grid(text: str, meant: Any) -> None:
    assert chosen(text) == [cell for cell in CELLS if meant(*cell)]


@pytest.mark.parametrize("rule", ["meets", "inside", "center"])
@pytest.mark.parametrize(
    "area", [(0, 25, 0, 25), (20, 91, 10, 40), (59, 61, 0, 60), (0, 500, 0, 500)]
)
def test_pixels_mean_the_cells_that_hold_them(rule: str, area: tuple[int, int, int, int]) -> None:
    """Against the pixels counted one by one."""
    x0, x1, y0, y1 = area
    inside = {(x, y) for x in range(x0, min(x1, 120)) for y in range(y0, min(y1, 60))}
    expected = []
    for cell in CELLS:
        left, top, right, bottom = (round(edge) for edge in box_of(*cell))
        own = {(x, y) for x in range(left, right) for y in range(top, bottom)}
        # Cells are of even size, so that the centre is the corner of a pixel.
        center = ((left + right) // 2, (top + bottom) // 2)
        meant = {"meets": bool(own & inside), "inside": own <= inside, "center": center in inside}
        expected += [cell] if meant[rule] else []
    text = (
        f"pixels[{x0}:{x1}, {y0}:{y1}]"
        if rule == "meets"
        else f"pixels[{x0}:{x1}, {y0}:{y1}, {rule}]"
    )
    assert chosen(text) == expected
    assert rule != "meets" or expected


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize(
    "text", ["box[0:1, 0:1] & tile[0]", "row[-1] & column[-1]", "box[0:1, 1:2]"]
)
def test_dilating_reaches_the_neighbours_in_the_same_grid(text: str, steps: int) -> None:
    near = [
        (t, r, c)
        for t, r, c in CELLS
        if any(t == u and abs(r - s) <= steps and abs(c - d) <= steps for u, s, d in chosen(text))
    ]
    assert chosen(f"dilate({text}, {steps})") == near
    assert steps == 0 or len(near) > len(chosen(text))


def test_neighbours_of_what_has_no_cell_are_refused() -> None:
    for text, kind in (("visual", "newline"), ("last", "text"), ("text", "text")):
        with pytest.raises(InputError, match=rf"dilate\({text}, 1\): .*\({kind}\).*& patch, 1\)"):
            chosen(f"dilate({text}, 1)")
    assert chosen("dilate(visual & patch, 1)") == CELLS


def test_images_of_a_batch_keep_their_grids_apart(twin: Any) -> None:
    """Two images in one sample, and two samples: neighbours stop at the border of the image."""
    model = twin().model
    prompts = [tiny.PROMPTS["two"], tiny.PROMPTS["middle"]]
    batch = model.encode([[tiny.image(0), tiny.image(1)], [tiny.image(2)]], prompts)
    visual = batch.visual
    corner = (visual.sample == 0) & (visual.image == 0) & (visual.row == 3) & (visual.col == 3)
    found = parse_selector("dilate(object, 1)").select(batch.with_tokens(object=corner)).prompt
    cells = [
        (s, i, r, c)
        for s, i, r, c, p in zip(
            visual.sample, visual.image, visual.row, visual.col, visual.position, strict=True
        )
        if found[s, p]
    ]
    assert cells == [(0, 0, 2, 2), (0, 0, 2, 3), (0, 0, 3, 2), (0, 0, 3, 3)]
    # Of a photo of another size the pixels of the photo are meant.
    wide = model.encode(tiny.image(0, (64, 64)), tiny.PROMPTS["middle"])
    here = parse_selector("pixels[0:16, 0:16]").select(wide).prompt.sum()
    assert here == 1
    with pytest.raises(
        Unsupported, match="not known which pixels the tokens of image 0 of sample 0"
    ):
        parse_selector("pixels[0:16, 0:16]").select(model.batch(wide.inputs))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Rows(-1), "row[-1]"),
        (Rows(1, 3), "row[1:3]"),
        (Columns(-2, None), "column[-2:]"),
        (Pixels((0, 9), (3, 40)), "pixels[0:9, 3:40]"),
        (Pixels((0, 9), (3, 40), "center"), "pixels[0:9, 3:40, center]"),
        (Dilated(Name("visual") & Name("patch"), 2), "dilate(visual & patch, 2)"),
        (~Rows(0) | Columns(0), "~row[0] | column[0]"),
        (Box((np.int64(0), np.int64(2)), (np.int32(1), np.uint8(3))), "box[0:2, 1:3]"),
        (Rows(np.int64(-1)), "row[-1]"),
    ],
)
def test_objects_and_text_are_the_same(made: Any, text: str) -> None:
    assert str(made) == text
    assert parse_selector(text) == made
    assert repr(parse_selector(text)) == repr(made)


@pytest.mark.parametrize(
    "text",
    ["row[a]", "row[1:2:2]", "row[-]", "row[0, 1]", "pixels[0:3]", "pixels[0:3, 4:4]",
     "pixels[0:3, 1:4, near]", "pixels[-1:3, 0:4]", "dilate(visual)", "dilate(visual, -1)",
     "dilate(visual, 1, 2)", "box[0:1, 0:1, inside]"],
)  # fmt: skip
def test_what_is_no_place_is_refused_at_its_place(text: str) -> None:
    with pytest.raises(InputError, match=r"\^"):
        parse_selector(text)


def test_places_that_make_no_sense_cannot_be_built() -> None:
    for make in (
        lambda: Rows(True),
        lambda: Dilated(Name("visual"), -1),
        lambda: Pixels((3, 1), (0, 1)),
        lambda: Pixels((0, 1), (-1, 1)),
    ):
        with pytest.raises(InputError):
            make()
