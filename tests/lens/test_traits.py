"""Traits of models, and how exactly each number type is held to what it should be."""

from __future__ import annotations

import pytest
import torch

from embedlens.lens.anatomy.traits import TRAITS, traits_counting_rows
from embedlens.lens.tolerances import ADDENDS, LOGITS, Tolerance

PLAIN = {"moe", "mrope", "softcap", "deepstack"}


def test_every_trait_has_one_entry() -> None:
    assert len({trait.name for trait in TRAITS}) == len(TRAITS)


@pytest.mark.parametrize(
    ("names", "before", "between"),
    [
        (PLAIN, [], []),
        (PLAIN | {"sliding_window"}, ["sliding_window"], ["sliding_window"]),
        ({"late_features", "bidirectional_image"}, ["bidirectional_image", "late_features"], []),
    ],
)
def test_traits_that_count_rows(names: set[str], before: list[str], between: list[str]) -> None:
    assert traits_counting_rows(names, between_layers=False) == before
    assert traits_counting_rows(names, between_layers=True) == between


@pytest.mark.parametrize("tolerance", [ADDENDS, LOGITS])
def test_double_precision_is_held_to_be_as_exact_as_single(tolerance: Tolerance) -> None:
    assert tolerance.of(torch.float64) == tolerance.of(torch.float32)
    assert tolerance.of(torch.int8) == tolerance.of(torch.bfloat16)
