"""The figure of a token's attention over the image: every cell has its own weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from builders.prompts import encode
from embedlens import InputError, Run
from embedlens.analyses import attention_map
from embedlens.analyses.attention_over_image import _spread
from tolerances import EQUAL


@pytest.fixture(scope="module")
def run(twin: Any) -> Run:
    model = twin().model
    return model.run(encode(model, "two-images"), capture="attention_weights", queries="text")


def test_a_panel_per_layer_and_head_says_what_the_image_gets(run: Run) -> None:
    figure = attention_map(run, layers=[1, 3], heads=[0, 2], image=1)
    seen = run.batch.visual
    keys = torch.as_tensor(seen.position[seen.image == 1].copy())
    *panels, _ = figure.axes
    shares = {
        (layer, head): float(run.attention_weights[layer][-1, head, keys].sum())
        for layer in (1, 3)
        for head in (0, 2)
    }
    expected = [f"layer {i}, head {h}: {share:.0%}" for (i, h), share in shares.items()]
    assert [panel.get_title(loc="left") for panel in panels] == expected
    assert "image 2" in figure.get_suptitle()
    means = attention_map(run, query=int(run.query_position[-2])).axes[:-1]
    share = float(run.attention_weights[0][-2].mean(0)[seen.position[seen.image == 0]].sum())
    assert means[0].get_title(loc="left") == f"layer 0: {share:.0%}"
    assert len(means) == 4


def test_every_cell_has_its_weight_where_it_is_and_views_add_up() -> None:
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 1, 1], [0, 0, 1, 1]])
    heat = _spread(boxes, np.array([0.1, 0.2, 0.3, 0.05]), (4, 8))
    assert heat.shape == (4, 8)
    for place, weight in (((0, 0), 0.15), ((1, 7), 0.25), ((3, 4), 0.35)):
        assert heat[place] == pytest.approx(weight, abs=EQUAL)


def test_the_darkest_cell_is_the_one_that_gets_most(run: Run) -> None:
    """Red falls from pale yellow to dark red nowhere as far as where the weight is largest."""
    (panel, _) = attention_map(run, layers=[2], heads=[1]).axes
    pixels = np.asarray(panel.images[0].get_array())
    seen = run.batch.visual
    mine = np.flatnonzero(seen.image == 0)
    best = mine[int(run.attention_weights[2][-1, 1][seen.position[mine]].argmax())]
    green = pixels[..., 1].reshape(tiny.SIDE, tiny.PATCH, tiny.SIDE, tiny.PATCH).mean((1, 3))
    place = np.unravel_index(green.argmin(), green.shape)
    assert place == (seen.row[best], seen.col[best])


def test_what_cannot_be_drawn_is_refused(twin: Any, run: Run) -> None:
    model = twin().model
    batch = encode(model, "two-images")
    with pytest.raises(InputError, match="capture='attention_weights'"):
        attention_map(model.run(batch))
    for settings, message in (
        ({"layers": [9]}, "layer 9 were not captured"),
        ({"heads": [4]}, "no head 4"),
        ({"image": 2}, "no image 2"),
        ({"sample": 1}, "no image 0 of sample 1"),
        ({"query": 3}, "at position 3 was captured"),
    ):
        with pytest.raises(InputError, match=message):
            attention_map(run, **settings)
    some = model.run(batch, capture="attention_weights", keys="text")
    with pytest.raises(InputError, match="not all visual tokens"):
        attention_map(some)
    bare = model.batch(dict(batch.inputs))
    with pytest.raises(InputError, match="is at hand"):
        attention_map(model.run(bare, capture="attention_weights"))
