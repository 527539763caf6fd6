"""The modules of a model are found anew when any of them has other children."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from embedlens.lens.opening.present_state import modules_of


def model() -> nn.Sequential:
    shared = nn.Linear(2, 2)
    inner = nn.Sequential(nn.Linear(2, 2), shared)
    return nn.Sequential(inner, nn.Sequential(shared, nn.GELU()))


def replace_inside(made: Any) -> None:
    made[0][0] = nn.Sequential(nn.Linear(2, 2), nn.ReLU())


def add_inside(made: Any) -> None:
    made[1].add_module("more", nn.Dropout())


def remove_inside(made: Any) -> None:
    del made[1][1]


def add_to_an_added_one(made: Any) -> None:
    made[1].add_module("more", nn.Sequential())
    modules_of(made)
    made[1].more.add_module("most", nn.Dropout())


def remove_all(made: Any) -> None:
    made._modules.clear()


@pytest.mark.parametrize(
    "change", [replace_inside, add_inside, remove_inside, add_to_an_added_one, remove_all]
)
def test_other_children_are_seen(change: Callable[[Any], None]) -> None:
    made = model()
    for _ in range(2):
        found = modules_of(made)
        assert found[0] is made
        assert len(found) == len(set(found)) == len([*made.modules()])
        assert set(found) == set(made.modules())
        found.clear()  # whoever asks has a list of his own
    change(made)
    assert set(modules_of(made)) == set(made.modules())


def test_a_model_that_was_looked_at_is_let_go() -> None:
    made = model()
    modules_of(made)
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None
