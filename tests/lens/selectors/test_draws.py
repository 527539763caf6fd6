"""What is drawn for a sample depends on its content and the seed, not on the batch around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from embedlens.interventions import Plan, ReplaceTokens, parse_selector
from embedlens.lens.inputs.content import image_content
from tolerances import EQUAL

DRAWS = ("random(like=box[0:2, 0:2], seed=1)", "control(of=box[0:2, 0:2], seed=1)")
SHORT, LONG = tiny.PROMPTS["middle"], tiny.PROMPTS["middle"] + " and some more words"


def drawn(batch: Any, text: str) -> list[np.ndarray]:
    """Which of its visual tokens were drawn in every sample."""
    mask = parse_selector(text).select(batch).prompt
    sample, position = batch.visual.sample, batch.visual.position
    return [np.flatnonzero(mask[i, position[sample == i]]) for i in range(len(batch))]


@pytest.mark.parametrize("text", DRAWS)
def test_a_draw_is_the_same_in_any_batch(twin: Any, text: str) -> None:
    model = twin().model
    images, prompts = [tiny.image(i) for i in range(5)], [SHORT, LONG, SHORT, LONG, SHORT]
    together = drawn(model.encode(images, prompts), text)
    for i in range(5):
        assert (drawn(model.encode([images[i]], [prompts[i]]), text)[0] == together[i]).all()
    order = [3, 0, 4, 2, 1]
    turned = model.encode([images[i] for i in order], [prompts[i] for i in order])
    for place, i in enumerate(order):
        assert (drawn(turned, text)[place] == together[i]).all()
    assert (drawn(model.encode(images, prompts).subset([2, 4]), text)[1] == together[4]).all()
    assert len({tuple(mine) for mine in together}) > 3
    other_seed = drawn(model.encode(images, prompts), text.replace("seed=1", "seed=2"))
    assert any((a != b).any() for a, b in zip(together, other_seed, strict=True))


def test_a_draw_is_the_same_from_tensors_in_any_order(twin: Any) -> None:
    model = twin().model
    made = model.encode([tiny.image(i) for i in range(4)], [SHORT, LONG, SHORT, LONG])
    batch = model.batch(made.inputs)
    together = drawn(batch, DRAWS[0])
    turned = drawn(model.batch(made.subset([2, 3, 1, 0]).inputs), DRAWS[0])
    for place, i in enumerate([2, 3, 1, 0]):
        assert (turned[place] == together[i]).all()
    assert len({tuple(mine) for mine in together}) > 1


def test_noise_is_the_same_in_any_batch(twin: Any) -> None:
    model = twin().model
    images = [tiny.image(i) for i in range(3)]
    plan = Plan(ReplaceTokens(by="noise", seed=4, layers=1))

    def residual(batch: Any) -> torch.Tensor:
        return model.run(batch, plan, capture="residual", layers=[1]).residual[1]

    batch = model.encode(images, [SHORT] * 3)
    together = residual(batch)
    for i in range(3):
        alone = residual(model.encode([images[i]], [SHORT]))
        assert torch.allclose(
            together[torch.as_tensor(batch.visual.sample == i)], alone, atol=EQUAL
        )
    twice = model.encode([images[0], images[0]], [SHORT] * 2)
    first, second = residual(twice).chunk(2)
    assert torch.equal(first, second)


def test_contents_are_of_pixels_size_tokens_and_nothing_else(twin: Any) -> None:
    model = twin().model
    one, other = tiny.image(0), tiny.image(1)
    batch = model.encode([one, other, one, one], [SHORT, SHORT, SHORT, LONG])
    first, second, third, fourth = batch.contents
    assert first == third
    assert len({first, second, fourth}) == 3
    assert model.encode([one], [SHORT]).contents == (first,)
    assert batch.subset([3, 1]).contents == (fourth, second)
    wide, tall = (Image.new("RGB", size, "red") for size in ((8, 2), (2, 8)))
    assert wide.tobytes() == tall.tobytes()
    assert image_content(wide) != image_content(tall)
