"""Markers on every tiny family that has a processor: found, applied, and told by ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from embedlens import InputError, Markers, Unsupported
from families.family import noise
from families.zoo import WITH_PROCESSOR, built, visual_lm


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_markers_are_found_and_label_every_visual_token(name: str) -> None:
    model, family = visual_lm(name), built(name)
    images = [noise(family.size, seed) for seed in range(2)]
    if "residual" in model.anatomy.refusals:
        with pytest.raises(Unsupported, match="streams"):
            Markers.discover(model, images)
        return
    markers = Markers.discover(model, images)
    batch = model.encode(images[0], family.prompt)
    classes = markers.classify(model, batch)
    assert len(classes) == len(batch.visual)


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_ids_label_the_tokens_that_a_plain_cosine_puts_nearest(name: str) -> None:
    model = visual_lm(name)
    if "residual" in model.anatomy.refusals:
        return
    batch = model.batch(built(name).inputs)
    words = len(model.tokenizer)
    table = model.hf.get_input_embeddings().weight.detach().double()[:words]
    entering = normalize(model.entry(batch).double(), dim=1)
    nearest = (entering @ normalize(table, dim=1).T).argmax(1).numpy()
    chosen = int(nearest[0])
    classes = Markers.from_ids({"dead": [chosen]}, k=1).classify(model, batch)
    assert np.array_equal(classes.membership["dead"], nearest == chosen)


def test_markers_of_another_width_are_refused() -> None:
    model = visual_lm("llava")
    markers = Markers(
        Markers.from_ids({"dead": [1]}).frame, torch.ones(1, 7), threshold=0.9, model="other"
    )
    with pytest.raises(InputError):
        markers.classify(model, model.batch(built("llava").inputs))
