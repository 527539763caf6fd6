"""Rules of layout on inputs made by hand, where every place is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedlens import InputError
from embedlens.lens.layout import Block, Layout, locate
from embedlens.lens.visual_tokens import VisualTokens
from tolerances import FLOAT64

SEEN, FILM, WORD = 90, 91, 7
CONFIG = SimpleNamespace(
    image_token_id=SEEN,
    video_token_id=FILM,
    vision_feature_select_strategy="default",
    vision_config=SimpleNamespace(patch_size=8),
)


def prompt(*pieces: int | list[int]) -> torch.Tensor:
    """Token ids; a number alone stands for so many visual tokens."""
    ids: list[int] = [WORD]
    for piece in pieces:
        ids += [SEEN] * piece if isinstance(piece, int) else piece
    return torch.tensor([[*ids, WORD]])


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) + 0.1


def find(ids: torch.Tensor, images: Any = None, **inputs: Any) -> VisualTokens:
    """The table for these ids; keyword arguments that are tensors are inputs."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    options = {name: value for name, value in inputs.items() if name not in tensors}
    options.setdefault("config", CONFIG)
    mask = (ids == SEEN) | (ids == FILM)
    return locate({"input_ids": ids, **tensors}, mask, images, **options)


def cells(visual: VisualTokens) -> list[tuple[int, ...]]:
    fields = visual.image, visual.tile, visual.time, visual.row, visual.col
    return [tuple(int(value) for value in row) for row in zip(*fields, strict=True)]


def grid(rows: int, cols: int, image: int = 0, tile: int = 0, time: int = 0) -> list[Any]:
    return [(image, tile, time, row, col) for row in range(rows) for col in range(cols)]


# ---------------------------------------------------------------- nothing is guessed


def test_a_number_of_tokens_that_fits_nothing_is_unplaced() -> None:
    visual = find(prompt(7), [[None]], pixel_values=pictures(1, 3, 32, 32))
    assert set(visual.kind) == {"unplaced"}
    assert (visual.row == -1).all()
    assert (visual.col == -1).all()
    assert np.isnan(visual.box).all()
    assert visual.position.tolist() == list(range(1, 8))


@pytest.mark.parametrize("count", [6, 9])
def test_cells_that_would_not_be_square_are_no_raster(count: int) -> None:
    visual = find(prompt(count), [[None]], pixel_values=pictures(1, 3, 32, 16))
    assert set(visual.kind) == {"unplaced"}


def test_learned_queries_are_latent_even_if_they_are_a_square_number() -> None:
    pixels = pictures(1, 3, 32, 32)
    assert set(find(prompt(16), [[None]], pixel_values=pixels).kind) == {"patch"}
    visual = find(prompt(16), [[None]], pixel_values=pixels, latents=True)
    assert set(visual.kind) == {"latent"}
    assert (visual.row == -1).all()


def test_sizes_of_the_original_image_are_not_read_as_a_grid() -> None:
    """56 × 72 divided by 8 has 63 cells, as many as seven tiles of nine."""
    sizes = torch.tensor([[56, 72]])
    visual = find(prompt(63), [[None]], pixel_values=pictures(7, 3, 24, 24), image_sizes=sizes)
    assert cells(visual) == [cell for tile in range(7) for cell in grid(3, 3, tile=tile)]
    sizes = torch.tensor([[64, 16]])  # 8 × 2 cells of 8 pixels
    visual = find(prompt(16), [[None]], pixel_values=pictures(1, 3, 32, 32), image_sizes=sizes)
    assert cells(visual) == grid(4, 4)


def test_nine_tiles_of_nine_tokens_are_not_nine_rows() -> None:
    """One token parts the tiles, as elsewhere one parts the rows of a raster."""
    parted = [piece for _ in range(9) for piece in (9, [WORD])]
    visual = find(prompt(*parted), [[None]], pixel_values=pictures(9, 3, 24, 24))
    assert cells(visual) == [cell for tile in range(9) for cell in grid(3, 3, tile=tile)]


def test_images_whose_tokens_touch_are_told_apart_by_their_number() -> None:
    visual = find(prompt(32), [[None, None]], pixel_values=pictures(2, 3, 32, 32))
    assert cells(visual) == grid(4, 4) + grid(4, 4, image=1)


def test_tiles_of_zeros_are_padding() -> None:
    pixels = pictures(2, 2, 3, 32, 32)
    pixels[1, 1] = 0
    long, short = prompt(32)[0], prompt([WORD] * 16, 16)[0]
    visual = find(torch.stack([long, short]), [[None], [None]], pixel_values=pixels)
    assert cells(visual) == grid(4, 4) + grid(4, 4, tile=1) + grid(4, 4)
    assert visual.sample.tolist() == [0] * 32 + [1] * 16


def test_a_mismatch_of_images_names_both_numbers() -> None:
    pixels = pictures(2, 3, 32, 32)
    with pytest.raises(InputError, match=r"32 visual positions .* 2 images, and 3 were given"):
        find(prompt(16, [WORD], 16), [[None] * 3], pixel_values=pixels)
    with pytest.raises(InputError, match="0 visual positions for 1 images"):
        find(prompt(), [[None]], pixel_values=pixels)
    with pytest.raises(InputError, match="16 visual positions for 0 images"):
        find(prompt(16), [[]], pixel_values=pixels)
    with pytest.raises(InputError, match=r"16 visual positions .* 1 images.* has 3"):
        find(prompt(16), None, pixel_values=pictures(3, 3, 32, 32))
    with pytest.raises(InputError, match="no pixel_values"):
        find(prompt(16))


def test_no_visual_token_is_an_empty_table() -> None:
    visual = find(prompt(), [[]])
    assert len(visual) == 0
    assert len(visual.frame) == 0


# ---------------------------------------------------------------- what the user states


def test_a_stated_layout_is_taken() -> None:
    layout = Layout((Block(2, 2), Block(2, 3, newline=True, after=1)))
    visual = find(prompt(13, [WORD], 13), None, layout=layout, pixel_values=pictures(1, 5))
    one = [*["patch"] * 4, *["patch"] * 3, "newline", *["patch"] * 3, "newline", "separator"]
    assert visual.kind.tolist() == one * 2
    assert cells(visual)[:4] == grid(2, 2)
    nowhere = (0, 1, 0, -1, -1)
    first, second = grid(2, 3, tile=1)[:3], grid(2, 3, tile=1)[3:]
    assert cells(visual)[4:13] == [*first, nowhere, *second, nowhere, nowhere]
    assert visual.image.tolist() == [0] * 13 + [1] * 13


def test_stated_layouts_may_differ_from_image_to_image() -> None:
    layouts = [[Layout((Block(1, 2),)), Layout((Block(3, 1),))]]
    visual = find(prompt(5), [[None, None]], layout=layouts, pixel_values=pictures(1, 5))
    assert cells(visual) == grid(1, 2) + grid(3, 1, image=1)


@pytest.mark.parametrize("layout", [Layout((Block(2, 2),)), [[Layout((Block(2, 2),))]]])
def test_a_stated_layout_that_does_not_fit_is_refused(layout: Any) -> None:
    with pytest.raises(InputError, match=r"4.*5"):
        find(prompt(5), [[None]], layout=layout, pixel_values=pictures(1, 5))


# ---------------------------------------------------------------- grids that the inputs name


@pytest.mark.parametrize("merge", [1, 2])
def test_a_grid_tensor_gives_one_raster_per_image(merge: int) -> None:
    patches = torch.tensor([[1, 4, 6], [1, 2, 8]])
    first, second = 24 // merge**2, 16 // merge**2
    visual = find(
        prompt(first + second), None, pixel_values=pictures(40, 48), image_grid_thw=patches
    )
    assert cells(visual) == [
        *grid(4 // merge, 6 // merge),
        *grid(2 // merge, 8 // merge, image=1),
    ]


def test_a_grid_with_newlines_and_ends_is_told_by_its_number_of_tokens() -> None:
    shape = torch.tensor([[1, 4, 6]])
    plain = {"pixel_values": pictures(24, 48), "image_grid_thw": shape}
    lined = find(prompt(2 * 4), None, **plain)
    assert lined.kind.tolist() == [*["patch"] * 3, "newline"] * 2
    ended = find(prompt(2 * 4 + 2), None, **plain)
    assert ended.kind.tolist() == ["separator", *[*["patch"] * 3, "newline"] * 2, "separator"]


def test_shapes_of_tiles_may_differ_and_join_at_their_markers() -> None:
    words = {1: "<|img_row_1_col_1|>", 2: "<|img_row_1_col_2|>", 3: "<|img_thumbnail|>"}
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda i: words.get(i, "word"))
    image: list[Any] = [[1], 4, [2], 4, [3], 2]
    visual = find(
        prompt(*image, [WORD], *image),
        None,
        pixel_values=pictures(6, 16, 48),
        spatial_shapes=torch.tensor([[4, 4], [4, 4], [2, 4]] * 2),
        processor=SimpleNamespace(tokenizer=tokenizer),
    )
    one = [*grid(2, 2), *grid(2, 2, tile=1), *grid(1, 2, tile=2)]
    assert cells(visual) == one + [(1, *place) for _, *place in one]


def test_two_views_of_the_whole_are_two_images() -> None:
    tokenizer = SimpleNamespace(convert_ids_to_tokens={3: "<global-img>", WORD: "word"}.get)
    visual = find(
        prompt([3], 4, [3], 4),
        None,
        pixel_values=pictures(1, 2, 3, 32, 32),
        processor=SimpleNamespace(tokenizer=tokenizer),
    )
    assert cells(visual) == grid(2, 2) + grid(2, 2, image=1)


def test_videos_count_on_after_the_images_of_their_sample() -> None:
    ids = torch.cat([prompt(4), torch.full((1, 8), FILM)], dim=1)
    visual = find(
        ids,
        [[None]],
        pixel_values=pictures(16, 48),
        image_grid_thw=torch.tensor([[1, 4, 4]]),
        pixel_values_videos=pictures(32, 48),
        video_grid_thw=torch.tensor([[2, 4, 4]]),
    )
    assert cells(visual) == [*grid(2, 2), *grid(2, 2, image=1), *grid(2, 2, image=1, time=1)]
    assert visual.frame["frame"].tolist() == [0] * 8 + [1] * 4


def test_types_tell_a_video_that_bears_the_id_of_images() -> None:
    ids = prompt(4, [WORD], 4)
    grids = {"pixel_values_videos": pictures(32, 48), "video_grid_thw": torch.tensor([[2, 4, 4]])}
    visual = find(ids, None, mm_token_type_ids=2 * (ids == SEEN).long(), **grids)
    assert cells(visual) == [*grid(2, 2), *grid(2, 2, time=1)]


def test_frames_written_as_images_are_one_video_when_their_number_is_known() -> None:
    ids, pixels = prompt(16, [WORD], 16), pictures(2, 3, 32, 32)
    assert set(find(ids, None, pixel_values=pixels).image) == {0, 1}
    visual = find(ids, [[]], pixel_values=pixels, frames_per_video=[[2]])
    assert cells(visual) == [*grid(4, 4), *grid(4, 4, time=1)]


# ---------------------------------------------------------------- measured on the processor


class Tiler:
    """A processor of our own: rows of tiles from the bottom up, then the whole image."""

    image_processor = SimpleNamespace(to_dict=lambda: {"tile": 8})

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(
        self, images: Sequence[Sequence[Image.Image]], samples: Sequence[int]
    ) -> Mapping[str, torch.Tensor]:
        self.calls.append(len(samples))
        tiles, texts = [], []
        for row in images:
            mine = [self.tiles(image) for image in row]
            texts.append([piece for image in mine for piece in (WORD, *[SEEN] * 4 * len(image))])
            tiles += [tile for image in mine for tile in image]
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
        pixels = np.stack([np.asarray(tile) for tile in tiles]).transpose(0, 3, 1, 2)
        mean, std = np.array([[0.4], [0.5], [0.6]])[..., None], 0.3
        return {"input_ids": ids, "pixel_values": torch.tensor((pixels / 255 - mean) / std)}

    def tiles(self, image: Image.Image) -> list[Image.Image]:
        across, down = image.width // 20, image.height // 20
        big = image.resize((8 * across, 8 * down), Image.Resampling.BICUBIC)
        cut = [
            big.crop((8 * x, 8 * y, 8 * x + 8, 8 * y + 8))
            for y in reversed(range(down))
            for x in range(across)
        ]
        return [*cut, image.resize((8, 8), Image.Resampling.BICUBIC)]

    def boxes(self, width: int, height: int) -> np.ndarray:
        """Of all tokens of an image, worked out with pencil and paper."""
        across, down = width // 20, height // 20
        w, h = width / across, height / down
        corners = [(x * w, y * h, w, h) for y in reversed(range(down)) for x in range(across)]
        return np.array(
            [
                (x + c * w / 2, y + r * h / 2, x + (c + 1) * w / 2, y + (r + 1) * h / 2)
                for x, y, w, h in [*corners, (0, 0, width, height)]
                for r in range(2)
                for c in range(2)
            ]
        )


def black(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [Image.new("RGB", size) for size in sizes]


def called(tiler: Tiler, images: list[list[Image.Image]]) -> VisualTokens:
    inputs = tiler(images, range(len(images)))
    tiler.calls.clear()
    mask = inputs["input_ids"] == SEEN
    return locate(inputs, mask, images, config=CONFIG, processor=tiler, repeat_call=tiler)


def test_boxes_of_an_unknown_processor_are_measured() -> None:
    sizes = [(67, 45), (41, 83), (25, 39)]
    visual = called(Tiler(), [black(*sizes[:2]), black(sizes[2])])
    images = [(0, 0), (0, 1), (1, 0)]
    for (sample, image), size in zip(images, sizes, strict=True):
        mine = visual.select((visual.sample == sample) & (visual.image == image))
        expected = Tiler().boxes(*size)
        # A tile of 8 pixels fixes a length to a fraction of one of its pixels.
        np.testing.assert_allclose(mine.box, expected, atol=0.4)
        assert mine.tile.tolist() == [tile for tile in range(len(expected) // 4) for _ in range(4)]


def test_tiles_of_many_images_find_their_owners() -> None:
    """More images than one brightness can tell apart."""
    sizes = [(20 + 20 * (i % 3), 40) for i in range(19)]
    visual = called(Tiler(), [black(*sizes)])
    for image, (width, height) in enumerate(sizes):
        tiles = (width // 20) * (height // 20) + 1
        assert int((visual.image == image).sum()) == 4 * tiles


def test_a_thousand_images_of_one_size_are_measured_once() -> None:
    tiler = Tiler()
    first = called(tiler, [black((67, 45)) for _ in range(6)])
    assert set(tiler.calls) == {1}
    assert len(tiler.calls) < 8
    again = called(tiler, [black((67, 45)) for _ in range(3)])
    assert tiler.calls == []
    assert (again.box == first.box[: len(again)]).all()
    called(tiler, [black((67, 45)), black((45, 67))])
    assert set(tiler.calls) == {1}


def test_a_processor_that_was_changed_is_measured_anew() -> None:
    tiler = Tiler()
    called(tiler, [black((67, 45))])
    tiler.image_processor = SimpleNamespace(to_dict=lambda: {"tile": 8, "other": True})
    called(tiler, [black((67, 45))])
    assert tiler.calls


def test_what_is_left_over_when_patches_are_cut_is_in_no_box() -> None:
    """Two patches of 8 pixels along 20: the tower never sees the last four."""

    def again(images: Any, samples: Any) -> dict[str, torch.Tensor]:
        seen = [np.asarray(image.resize((20, 20))) for row in images for image in row]
        pixels = torch.tensor(np.stack(seen).transpose(0, 3, 1, 2) / 255.0)
        return {"input_ids": prompt(4), "pixel_values": pixels}

    images = [black((100, 50))]
    inputs = again(images, [0])
    mask = inputs["input_ids"] == SEEN
    visual = locate(inputs, mask, images, config=CONFIG, repeat_call=again)
    assert visual.box[-1] == pytest.approx([40, 20, 80, 40])


@pytest.mark.parametrize("size", [(32, 32), (64, 40), (40, 90), (35, 33), (301, 300), (500, 1999)])
def test_boxes_under_a_centre_crop_are_exact(twin: Any, size: tuple[int, int]) -> None:
    """Shortest edge to 32 pixels, then the middle 32 × 32: as CLIP does it, in whole pixels."""
    visual = twin().model.encode(Image.new("RGB", size), "a <image> b").visual
    width, height = size
    short = min(size)
    new = (32, int(height * 32 / short)) if width <= height else (int(width * 32 / short), 32)
    left, top = (new[0] - 32) // 2, (new[1] - 32) // 2
    x = (np.arange(5) * 8 + left) * width / new[0]
    y = (np.arange(5) * 8 + top) * height / new[1]
    expected = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(4) for c in range(4)]
    np.testing.assert_allclose(visual.box, expected, rtol=FLOAT64)
