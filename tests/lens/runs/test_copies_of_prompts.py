"""Several texts for a prompt with several images are about these images, or are refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from embedlens import Batch, Plan, Unsupported, VisualLM, ZeroFFN
from families import zoo
from families.family import noise
from tolerances import RECOMPUTED

# GLM-4V groups the images of copies wrongly; Granite Vision repeats not all of their features.
MIXED_UP = ("glm4v", "glm46v", "glm4v_moe", "glm_ocr", "granite4_vision")
SEVERAL = ("llava", "qwen2_5_vl", "gemma3", "internvl", "qwen3_vl", "idefics3", "pixtral")
PLAN = Plan(ZeroFFN(layers=1, tokens="all", phase="all"))
WAYS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"do_sample": False, "num_beams": 2},
}


@cache
def batch_of(name: str, images: int) -> Batch:
    """Two prompts: one image, and as many of different forms as are said."""
    size = zoo.built(name).size
    forms = [noise(size[::-1], 2), noise(size, 3)][:images]
    return zoo.visual_lm(name).encode([[noise(size, 1)], forms], ["what is this ?", "a b"])


def told(model: VisualLM, way: str) -> dict[str, Any]:
    silent = list(model.anatomy.visual_ids)
    return {**WAYS[way], "max_new_tokens": 3, "min_new_tokens": 3, "suppress_tokens": silent}


@pytest.mark.quick("glm4v", "granite4_vision")
@pytest.mark.parametrize("name", MIXED_UP)
@pytest.mark.parametrize("way", WAYS)
def test_images_that_are_mixed_up_are_refused(name: str, way: str) -> None:
    model, batch = zoo.visual_lm(name), batch_of(name, 2)
    given, refused = told(model, way), "mixes up images .* of sample 1"
    for plan in (None, PLAN):
        with pytest.raises(Unsupported, match=refused):
            model.generate_ids(batch, plan, **given)
    with pytest.raises(Unsupported, match=refused):
        model.generate_ids_many(batch, [None, PLAN], **given)
    assert len(model.generate_ids(batch, PLAN, max_new_tokens=1, do_sample=False)) == 2


@pytest.mark.quick("glm4v")
@pytest.mark.parametrize("name", MIXED_UP[:1])
def test_they_are_refused_where_passes_are_shared_that_were_right(name: str) -> None:
    model, size = zoo.visual_lm(name), zoo.built(name).size
    given, prompts = told(model, "sampling"), ["what is this ?", "a b"]
    # The same image twice cannot be mixed up.
    twice = model.encode([[noise(size, 1)], [noise(size, 2)] * 2], prompts)
    for _ in range(2):
        assert len(model.generate_ids_many(twice, [None, PLAN], **given)[1]) == 4
    with pytest.raises(Unsupported, match="mixes up images"):
        model.generate_ids_many(batch_of(name, 2), [None, PLAN], **given)


@pytest.mark.quick("glm4v")
@pytest.mark.parametrize("name", MIXED_UP[:4])
def test_they_are_refused_in_a_block_as_well(name: str) -> None:
    model, batch = zoo.visual_lm(name), batch_of(name, 2)
    with (
        pytest.raises(Unsupported, match="mixes up images"),
        model.generating(batch, PLAN, **told(model, "sampling")) as tracer,
    ):
        _ = tracer.result.save()


@pytest.mark.quick("glm4v", "granite4_vision", "llava", "qwen2_5_vl")
@pytest.mark.parametrize(
    ("name", "images"), [*((n, 1) for n in MIXED_UP), *((n, 2) for n in SEVERAL)]
)
def test_sampled_texts_have_the_probability_of_their_own_prompt(name: str, images: int) -> None:
    """Scores run every prompt once, so that nothing is repeated there."""
    model, batch = zoo.visual_lm(name), batch_of(name, images)
    torch.manual_seed(0)
    found = model.generate_details(batch, PLAN, **told(model, "sampling"))
    for text, answer in enumerate(found.answers):
        sample = text // 2
        score = model.score(batch[sample : sample + 1], [answer], PLAN)
        written = float(found.logprob[text].sum())
        assert float(score.logprob[0]) == pytest.approx(written, abs=RECOMPUTED)
    assert len(model.generate_ids(batch, PLAN, **told(model, "beams"))) == 2
