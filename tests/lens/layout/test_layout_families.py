"""The table of visual tokens against the models themselves, for every family of the zoo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedlens.lens.layout import locate
from embedlens.lens.visual_tokens import VisualTokens
from families import zoo
from families.family import FAMILIES, Family
from oracles import painting
from tolerances import MEASURED

LATENT = ("blip-2", "instructblip", "idefics2", "aria", "kosmos-2")
# Rows of their images end in newline tokens that bear the id of patches.
LINED = (
    *("llava_next", "llava_next_video", "llava_onevision", "llava_onevision_shrunk"),
    *("granite4_vision", "phi4_multimodal", "emu3"),
)
# Their processor takes one image per prompt, or the model reads only the first.
ONE_IMAGE = ("blip-2", "instructblip", "kosmos-2", "fuyu", "gemma4_unified")
# A discrete code may survive a colour, and wide convolutions blur one: several are painted there.
SHADES = {"chameleon": (255, 20, 180, 100), "got_ocr2": (255, 20)}

PLAIN = tuple(sorted(set(FAMILIES) - set(zoo.REFUSED) - {"git"}))
PROCESSED = tuple(name for name in PLAIN if zoo.built(name).processor is not None)
PLACED = tuple(name for name in PROCESSED if name not in LATENT)


class Called:
    """A family's processor called once, and the table that the package makes of the outcome."""

    def __init__(
        self, name: str, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str] = ()
    ) -> None:
        self.family = zoo.built(name)
        self.prompts = list(prompts) or [self.family.prompt] * len(images)
        self.inputs = self.call(images, range(len(images)))
        self.mask = visual_mask(self.family, self.inputs)
        self.visual: VisualTokens = locate(
            self.inputs,
            self.mask,
            images,
            config=self.family.model.config,
            processor=self.family.processor,
            latents=name in LATENT,
            repeat_call=self.call,
        )

    def call(
        self, images: Sequence[Sequence[Image.Image]], samples: Sequence[int]
    ) -> Mapping[str, torch.Tensor]:
        texts = [self.prompts[i] for i in samples]
        nested: Any = [list(row) for row in images]
        settings = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
        try:
            made = self.family.processor(text=texts, images=nested, **settings)
        except ValueError:  # takes a flat list
            flat = [image for row in nested for image in row]
            made = self.family.processor(text=texts, images=flat, **settings)
        return {
            name: value
            for name, value in made.items()
            if isinstance(value, torch.Tensor) and name != "labels"
        }

    def moved(self, images: Sequence[Image.Image], *others: Sequence[Image.Image]) -> np.ndarray:
        """How far the visual rows of the one sample move under other images, ``[other, token]``."""
        batch = self.call([images, *others], [0] * (1 + len(others)))
        rows = painting.entry(self.family.model, batch)[:, self.visual.position]
        return (rows[1:] - rows[:1]).norm(dim=-1).numpy()


def visual_mask(family: Family, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """By the configuration's own word; shares nothing with the anatomy."""
    if "image_embeds_position_mask" in inputs:
        return inputs["image_embeds_position_mask"].bool()
    config = family.model.config
    wanted = getattr(config, "image_token_id", None)
    if wanted is None:
        wanted = config.vision_config.image_token_id
    return inputs["input_ids"] == wanted


def probes(visual: VisualTokens, number: int = 2) -> list[int]:
    """Cells of the first, a middle and the last tile that lie wholly in the image."""
    tiles = np.unique(visual.tile)
    chosen: list[int] = []
    for tile in sorted({int(tiles[0]), int(tiles[len(tiles) // 2]), int(tiles[-1])}):
        cells = np.flatnonzero((visual.tile == tile) & visual.placed)
        area = np.prod(visual.box[cells, 2:] - visual.box[cells, :2], axis=1)
        whole = cells[area > 0.7 * area.max()]
        chosen += [
            int(whole[i]) for i in np.linspace(0, len(whole) - 1, number).round().astype(int)
        ]
    return chosen


@pytest.mark.parametrize("turned", [False, True], ids=["as is", "turned"])
@pytest.mark.parametrize("name", PLACED)
def test_the_token_at_a_box_moves_most_when_the_box_is_painted(name: str, turned: bool) -> None:
    width, height = zoo.built(name).size
    # Other proportions than the family was built for, and no multiple of anything.
    size = (height + 3, width + 5) if turned else (width, height)
    image = painting.smooth(size)
    called = Called(name, [[image]])
    visual = called.visual
    assert visual.placed.all() == (name not in LINED)
    assert visual.placed.any()
    chosen, shades = probes(visual), SHADES.get(name, (255,))
    variants = [[painting.painted(image, visual.box[t], s)] for t in chosen for s in shades]
    moves = called.moved([image], *variants).reshape(len(chosen), len(shades), -1).sum(axis=1)
    for token, moved in zip(chosen, moves, strict=True):
        mine = np.where(visual.tile == visual.tile[token], moved, -1)
        assert int(mine.argmax()) == token, (
            visual.frame.loc[token],
            visual.frame.loc[mine.argmax()],
        )


@pytest.mark.parametrize("name", LINED)
def test_tokens_without_a_place_do_not_see_the_image(name: str) -> None:
    """Newlines and separators are learned rows: no image moves them."""
    size = zoo.built(name).size
    images = [painting.smooth(size)], [painting.smooth(size, seed=1)]
    called = Called(name, images[:1])
    moved = called.moved(*images)[0]
    assert "newline" in called.visual.kind
    assert (moved[~called.visual.placed] == 0).all()
    assert (moved[called.visual.placed] > 0).mean() > 0.9  # a code may stay what it was


@pytest.mark.parametrize("name", PLACED)
def test_the_tiles_of_a_view_cover_the_image_without_gap_or_overlap(name: str) -> None:
    """Cell areas of the tiles (without a view of the whole) add up to what the model sees."""
    visual = Called(name, [[painting.smooth(zoo.built(name).size)]]).visual
    for tile in np.unique(visual.tile):
        cells = visual.placed & (visual.tile == tile)
        box, row, col = visual.box[cells], visual.row[cells], visual.col[cells]
        rows, cols = visual.grid(tile=int(tile))
        assert sorted(zip(row, col, strict=True)) == [
            (r, c) for r in range(rows) for c in range(cols)
        ]
        lines = [np.unique(box[row == r][:, [1, 3]], axis=0) for r in range(rows)]
        assert all(len(line) == 1 for line in lines)
        assert all(a[0, 1] == b[0, 0] for a, b in pairwise(lines))


@pytest.mark.parametrize("name", PROCESSED)
def test_a_ragged_batch_has_the_tables_of_its_samples(name: str) -> None:
    """Images of two sizes and prompts of two lengths, padded on the left."""
    family = zoo.built(name)
    width, height = family.size
    if name == "perception_lm":  # its processor cannot stack unequal numbers of tiles
        height, width = width, height
    images = [[painting.smooth((width, height))], [painting.smooth((height, width), seed=1)]]
    prompts = [family.prompt, family.prompt + " a b c d"]
    both = Called(name, images, prompts)
    for sample in range(2):
        alone = Called(name, [images[sample]], [prompts[sample]]).visual
        mine = both.visual.select(both.visual.sample == sample)
        for field in ("image", "tile", "time", "row", "col", "kind"):
            assert (getattr(mine, field) == getattr(alone, field)).all(), field
        np.testing.assert_allclose(mine.box, alone.box, atol=0.25)
    assert both.mask[both.visual.sample, both.visual.position].all()
    assert int(both.mask.sum()) == len(both.visual)


@pytest.mark.parametrize("name", [name for name in PLACED if name not in ONE_IMAGE])
def test_painting_the_second_image_moves_only_its_tokens(name: str) -> None:
    family = zoo.built(name)
    images = [painting.smooth(family.size), painting.smooth(family.size, seed=1)]
    called = Called(name, [images], [family.prompt + " " + family.prompt])
    visual = called.visual
    assert set(visual.image) == {0, 1}
    area = np.prod(visual.box[:, 2:] - visual.box[:, :2], axis=1)
    seen = np.flatnonzero((visual.image == 1) & visual.placed & (area > 0.7 * np.nanmax(area)))
    chosen = seen[[0, -1]]
    painted = [painting.painted(images[1], visual.box[token]) for token in chosen]
    other = painting.smooth(family.size, seed=2)
    moves = called.moved(images, *([images[0], second] for second in (other, *painted)))
    assert moves[0, visual.image == 0].max() < MEASURED * moves[0, visual.image == 1].max()
    for token, moved in zip(chosen, moves[1:], strict=True):
        mine = (visual.image == 1) & (visual.tile == visual.tile[token])
        assert int(np.where(mine, moved, -1).argmax()) == token


@pytest.mark.parametrize("name", PROCESSED)
def test_tensors_alone_tell_the_same_places(name: str) -> None:
    """All but the boxes, which need the images."""
    family = zoo.built(name)
    called = Called(name, [[painting.smooth(family.size)]])
    alone = locate(
        called.inputs,
        called.mask,
        None,
        config=family.model.config,
        processor=family.processor,
        latents=name in LATENT,
    )
    fields = ["row", "col", "kind", "time", "position"]
    if name != "idefics2":  # one token parts its tiles and its images alike
        fields += ["image", "tile"]
    for field in fields:
        assert (getattr(alone, field) == getattr(called.visual, field)).all(), field
    assert np.isnan(alone.box).all()


@pytest.mark.parametrize("name", LATENT)
def test_learned_queries_have_no_place(name: str) -> None:
    visual = Called(name, [[painting.smooth(zoo.built(name).size)]]).visual
    assert set(visual.kind) == {"latent"}
    assert (visual.row == -1).all()
    assert (visual.col == -1).all()
    assert np.isnan(visual.box).all()
