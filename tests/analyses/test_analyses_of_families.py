"""Every analysis on quite different families: it runs, or refuses and says why."""

from __future__ import annotations

import copy
import functools
import re

import numpy as np
import pandas as pd
import pytest
import torch

from embedlens import Markers, Unsupported, VisualLM
from embedlens.analyses import Example, Material, Truth, find, registered
from embedlens.lens.errors import EmbedlensError
from families.family import noise
from families.zoo import built

pytestmark = pytest.mark.full

IMAGES = 3
# Plain, grids of any size, a scrambled grid, attention both ways, tiles, states added between
# layers, linear attention, convolutions, and learned queries.
NAMES = (
    *("llava", "qwen2_5_vl", "internvl", "gemma3", "idefics3", "qwen3_vl"),
    *("qwen3_5", "lfm2_vl", "blip-2"),
)
# By family, what an analysis may refuse, and a word of why.
_UNMASKED = "without a mask over keys that attention could be blocked with"
_HYBRID = dict.fromkeys(("pruning", "information_flow"), _UNMASKED)
_ALONE = dict.fromkeys(("token_map", "lens_comparison", "alignment"), "takes no text alone")
REFUSED: dict[str, dict[str, str]] = {
    "qwen3_5": _HYBRID,
    "lfm2_vl": _HYBRID,
    "blip-2": {**_ALONE, "patch_compression": "have no cell"},
}
# Vocabularies of single words do not have those of this benchmark.
_WORDS = "the choice 'triangle' begins"
ANALYSES = tuple(name for name, one in registered().items() if one.run is not None)


def speaking(name: str) -> VisualLM:
    """The family with a head that never says a placeholder, as a trained one does not."""
    family = built(name)
    model = copy.deepcopy(family.model)
    head = model.get_output_embeddings().weight
    kinds = ("image_token_id", "image_token_index", "video_token_id")
    ids = [getattr(model.config, kind, None) for kind in kinds]
    with torch.no_grad():
        head[[i for i in ids if i is not None and i < len(head)]] = 0
    return VisualLM(model, family.processor)


@functools.cache
def material(name: str) -> Material:
    """Three images of noise, whose tokens are said to show one thing or another."""
    family, model = built(name), speaking(name)
    images = [noise(family.size, i) for i in range(IMAGES)]
    templated = getattr(family.processor, "chat_template", None) is not None
    prompt = "what color is this ?" if templated else family.prompt
    batch = model.encode([[image] for image in images], [prompt] * IMAGES)
    markers = Markers.discover(model, images, prompt=prompt)
    batch = batch.with_classes(markers.classify(model, batch))
    odd = np.arange(len(batch.visual)) % 2 == 1
    words = [("red",) if one else ("blue",) for one in odd]
    return Material(
        model,
        [batch],
        [Example(image, prompt) for image in images],
        ["a red star", "the blue circle is in the top left", "what is this"],
        markers=markers,
        truth=Truth(words, ["object" if one else "background" for one in odd]),
        examples_at_once=IMAGES,
    )


def check_numbers(frame: pd.DataFrame) -> None:
    """No number is infinite, and no measured value is missing where something was measured."""
    numbers = frame.select_dtypes("number")
    assert not np.isinf(numbers.to_numpy(dtype=float, na_value=np.nan)).any()
    assert len(frame)
    assert numbers.notna().to_numpy().any()


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_or_says_why_not(name: str, analysis: str) -> None:
    one, about = find(analysis), material(name)
    assert one.run is not None
    if one.lacks(about):
        pytest.skip(f"no {' and no '.join(one.lacks(about))}")
    words = {"patch_compression": _WORDS}
    if why := (words | REFUSED.get(name, {})).get(analysis):
        with pytest.raises(EmbedlensError, match=why):
            one.run(about)
        return
    found = one.run(about)
    check_numbers(found.frame)
    said = one.findings(found)
    assert said
    assert not [sentence for sentence in said if re.search(r"\bnan\b|\binf\b", sentence)], said
    found.plot()
    one.table(found)
    one.claims(found)


@pytest.mark.parametrize(("name", "why"), [("mllama", "cross"), ("gemma3n", "several streams")])
def test_what_cannot_be_read_is_refused_before_any_analysis(name: str, why: str) -> None:
    """Visual tokens outside the decoder's sequence, and states that are not one sum."""
    with pytest.raises(Unsupported, match=why):
        material(name)
