"""Whose rows an image tensor holds: told from what fits alone, or not told at all."""

from __future__ import annotations

import pytest
import torch

from embedlens.lens.inputs.rows_per_sample import (
    SampleCounts,
    pointed_rows,
    rows_per_sample,
    token_axis,
)

LONG = torch.long


def shares(images: list[int], tokens: list[int], tiles: list[int] | None = None) -> SampleCounts:
    return SampleCounts(tuple(images), tuple(tiles or images), tuple(tokens))


CASES = {
    # (tensors, what the samples have, rows of pixel_values per sample)
    "a row per image": ({"pixel_values": torch.zeros(3, 3, 8, 8)}, shares([1, 2], [4, 8]), (1, 2)),
    "a row per image of other sizes": (
        {"pixel_values": torch.zeros(3, 3, 8, 8)},
        shares([1, 2], [24, 12]),
        (1, 2),
    ),
    "a row per sample": (
        {"pixel_values": torch.zeros(2, 5, 3, 8, 8)},
        shares([1, 2], [4, 8]),
        (1, 1),
    ),
    "either": ({"pixel_values": torch.zeros(2, 5, 3, 8, 8)}, shares([2, 0], [8, 0]), None),
    "sizes are never per sample": (
        {"pixel_values": torch.zeros(2, 2, dtype=LONG)},
        shares([2, 0], [8, 0]),
        (2, 0),
    ),
    "patches by their grid": (
        {
            "pixel_values": torch.zeros(20, 12),
            "image_grid_thw": torch.tensor([[1, 2, 4], [1, 3, 4]]),
        },
        shares([1, 1], [2, 3]),
        (8, 12),
    ),
    "crops by their number": (
        {"pixel_values": torch.zeros(5, 9, 12), "image_num_crops": torch.tensor([1, 4])},
        shares([1, 1], [9, 9]),
        (1, 4),
    ),
    "tiles as their tokens": (
        {"pixel_values": torch.zeros(7, 3, 8, 8)},
        shares([1, 2], [4, 24], [1, 6]),
        (1, 6),
    ),
    "tiles against their tokens": (
        {"pixel_values": torch.zeros(6, 3, 8, 8)},
        shares([1, 1], [8, 16], [3, 3]),
        None,
    ),
    "tiles of several sizes": (
        {
            "pixel_values": torch.zeros(4, 9, 12),
            "spatial_shapes": torch.tensor([[2, 2]] * 3 + [[4, 2]]),
        },
        shares([1, 1], [3, 2], [1, 1]),
        (3, 1),
    ),
    "nothing fits": ({"pixel_values": torch.zeros(7, 3, 8, 8)}, shares([1, 1], [4, 5]), None),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_shared_out_only_where_one_reading_fits(case: str) -> None:
    tensors, known, expected = CASES[case]
    assert rows_per_sample("pixel_values", tensors, known) == expected


def test_videos_are_not_told_by_the_grids_of_images() -> None:
    tensors = {
        "pixel_values_videos": torch.zeros(6, 12),
        "image_grid_thw": torch.tensor([[1, 1, 2], [1, 2, 2]]),
    }
    assert rows_per_sample("pixel_values_videos", tensors, shares([1, 1], [2, 1])) == (4, 2)


def test_pointers_are_known_by_pointing_at_their_own_samples_rows() -> None:
    pixels = torch.zeros(3, 4, 12)  # one crop of 4 patches, then two
    pointing = torch.tensor([[0, 1], [2, -1], [4, 11]])
    assert pointed_rows(pointing, (2, 1), pixels, (1, 2)).tolist() == [0, 4]
    assert pointed_rows(pointing, (1, 2), pixels, (1, 2)) is None
    assert pointed_rows(pointing.float(), (2, 1), pixels, (1, 2)) is None


@pytest.mark.parametrize(
    ("name", "tensor", "axis"),
    [
        ("attention_mask", torch.zeros(2, 9, dtype=LONG), 0),
        ("inputs_embeds", torch.zeros(2, 9, 4), 0),
        ("position_ids", torch.zeros(3, 2, 9, dtype=LONG), 1),
        ("pixel_values", torch.zeros(2, 9, 3, 8, 8), None),
        ("image_sizes", torch.zeros(2, 2, dtype=LONG), None),
    ],
)
def test_tensors_of_tokens_are_told_from_those_of_images(
    name: str, tensor: torch.Tensor, axis: int | None
) -> None:
    assert token_axis(name, tensor, (2, 9)) == axis
