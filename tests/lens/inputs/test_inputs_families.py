"""Inputs of every family: the processor's tensors, left padding, subsets, what may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from embedlens import Batch, InputError, Unsupported, VisualLM
from families import zoo
from families.family import noise
from families.processed_videos import PROMPTS_WITH_VIDEO, frames, with_video
from families.video_inputs import VIDEOS
from tolerances import LARGE, PREPARED

WITH_PROCESSOR = zoo.WITH_PROCESSOR
# Processors that make nothing without an image, and models whose forward asks for pixels.
IMAGE_NEEDED = {"got_ocr2", "paligemma", "paligemma2", "blip-2", "instructblip", "kosmos-2"}
ONE_IMAGE = {"blip-2", "instructblip", "kosmos-2", "fuyu"}
# Families of plain prompts; got_ocr2's processor does not take its own conversations.
WITHOUT_TEMPLATE = {*IMAGE_NEEDED, "fuyu"}
# Rows of their pixel tensor that only the processor could assign to samples.
UNTOLD: set[str] = set()
# One of two image tensors of a model without a processor: nothing tells that both belong.
UNNOTICED = {("step3p7", "pixel_values")}
# A first prompt, one for two images, and a longer one.
PROMPTS = ("what is this ?", "a b", "which color is the star on the left ?")
FILL = -1e30  # logits below are masked by the model


def logits(name: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """The plain transformers model's logits, nothing left over from another prompt."""
    model: Any = zoo.built(name).model
    for module in model.modules():
        # The position offset of the last prompt, which some models reuse in the next call.
        if hasattr(module, "rope_deltas"):
            module.rope_deltas = None
    with torch.no_grad():
        found: Tensor = model(**inputs, use_cache=False).logits
    return found


def apart(found: Tensor, expected: Tensor) -> float:
    real = expected > FILL
    return float((found - expected)[real].abs().max())


@cache
def pictures(name: str) -> list[list[Any]]:
    size = zoo.built(name).size
    two = [noise(size[::-1], 2)] if name in ONE_IMAGE else [noise(size[::-1], 2), noise(size, 3)]
    return [[noise(size, 1)], two, [noise(size, 4)]]


@cache
def ragged(name: str) -> tuple[Batch, Tensor]:
    """Three prompts of different lengths with one, two and one images; and the last logits."""
    batch = zoo.visual_lm(name).encode(pictures(name), PROMPTS)
    return batch, logits(name, batch.inputs)[:, -1]


@pytest.mark.quick(*WITH_PROCESSOR)
@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_encoding_equals_the_processor_called_directly(name: str) -> None:
    made = zoo.built(name)
    batch = zoo.visual_lm(name).encode(noise(made.size), made.prompt, template=template_of(name))
    expected = {key: value for key, value in made.inputs.items() if key != "labels"}
    assert set(batch.inputs) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(batch.inputs[key], value, atol=PREPARED, rtol=0, msg=key)


def template_of(name: str) -> bool | None:
    """The zoo's prompts are written out; families that place images by themselves write none."""
    return False if zoo.visual_lm(name).image_placeholder in zoo.built(name).prompt else None


@pytest.mark.parametrize("name", [n for n in WITH_PROCESSOR if n not in WITHOUT_TEMPLATE])
def test_a_plain_prompt_equals_the_librarys_own_conversation(name: str) -> None:
    """Template, placeholders, markers and BOS as transformers makes them in one step."""
    made = zoo.built(name)
    image = noise(made.size, 1)
    parts = [{"type": "image", "image": image}, {"type": "text", "text": PROMPTS[0]}]
    expected = made.processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    batch = zoo.visual_lm(name).encode(image, PROMPTS[0])
    for key, value in batch.inputs.items():
        torch.testing.assert_close(
            value, expected[key].to(value.dtype), atol=PREPARED, rtol=0, msg=key
        )


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_padding_and_neighbours_change_nothing(name: str) -> None:
    batch, together = ragged(name)
    mask = batch.inputs["attention_mask"].bool()
    assert bool(mask[:, -1].all())
    assert not bool((mask[:, :-1] & ~mask[:, 1:]).any()), "padding stands on the left"
    assert not bool(mask.all())
    assert batch.images_per_row == tuple(len(row) for row in pictures(name))
    for sample, (row, prompt) in enumerate(zip(pictures(name)[:2], PROMPTS, strict=False)):
        alone = zoo.visual_lm(name).encode([row], [prompt])
        shift = batch.length - alone.length
        mine = batch.visual.sample == sample
        assert (batch.visual.position[mine] - shift).tolist() == alone.visual.position.tolist()
        single = logits(name, alone.inputs)[0, -1]
        assert apart(together[sample], single) < LARGE * float(single[single > FILL].abs().max())


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_a_subset_is_those_samples(name: str) -> None:
    batch, together = ragged(name)
    for samples in ([1], [2, 0], [0, 1, 1]):
        part = batch.subset(samples)
        assert part.images_per_row == tuple(batch.images_per_row[i] for i in samples)
        assert len(part.visual) == sum(int((batch.visual.sample == i).sum()) for i in samples)
        found = logits(name, part.inputs)[:, -1]
        assert apart(found, together[samples]) < LARGE * float(found[found > FILL].abs().max())


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_a_subset_of_tensors_is_those_samples_or_refused(name: str) -> None:
    batch, together = ragged(name)
    given = zoo.visual_lm(name).batch(batch.inputs)
    assert len(given.visual) == len(batch.visual)
    if name in UNTOLD:
        with pytest.raises(Unsupported, match="cannot be told"):
            given.subset([2, 1])
        return
    part = given.subset([2, 1])
    found = logits(name, part.inputs)[:, -1]
    assert apart(found, together[[2, 1]]) < LARGE * float(found[found > FILL].abs().max())


def test_where_the_owner_of_pixels_is_unclear_only_the_processor_knows() -> None:
    """Two rows for two samples with two images in one of them: a row per sample, or per image."""
    size = zoo.built("idefics3").size
    model = zoo.visual_lm("idefics3")
    images = [[noise(size, 1), noise(size, 2)], []]
    batch = model.encode(images, ["what is this ?", "a b"])
    together = logits("idefics3", batch.inputs)[:, -1]
    part = batch.subset([1])
    assert "pixel_values" not in part.inputs
    assert apart(logits("idefics3", part.inputs)[:, -1], together[1:]) < LARGE
    assert apart(logits("idefics3", batch.subset([0]).inputs)[:, -1], together[:1]) < LARGE


@pytest.mark.parametrize("name", zoo.READABLE)
def test_what_matters_cannot_be_left_out(name: str) -> None:
    """An input is refused when missing exactly if the model fails or computes otherwise."""
    check_leaving_out(name, zoo.built(name).inputs)


@pytest.mark.parametrize("name", sorted({*VIDEOS, *PROMPTS_WITH_VIDEO} & set(zoo.READABLE)))
def test_what_matters_to_a_video_cannot_be_left_out(name: str) -> None:
    made = zoo.built(name)
    inputs = VIDEOS[name](made) if name in VIDEOS else with_video(name, made)
    if "pixel_values_videos" in inputs:
        batch = zoo.visual_lm(name).batch(inputs)
        assert batch.images_per_row == (0,)
        assert sum(batch.videos_per_row) >= 1
    check_leaving_out(name, inputs)


def check_leaving_out(name: str, whole: Mapping[str, Tensor]) -> None:
    made = zoo.built(name)
    model = zoo.visual_lm(name)
    inputs = {key: value for key, value in whole.items() if key != "labels"}
    complete = logits(name, inputs)
    for left_out in set(inputs) - {"input_ids", "attention_mask"}:
        rest = {key: value for key, value in inputs.items() if key != left_out}
        matters = changes(name, rest, complete)
        if matters and (name, left_out) not in UNNOTICED:
            with pytest.raises(InputError):
                model.batch(rest)
        elif not matters and made.processor is not None:
            # Without a processor nothing says what a complete batch is: then it is refused.
            assert len(model.batch(rest).visual) == len(model.batch(inputs).visual), left_out


def changes(name: str, rest: Mapping[str, Tensor], complete: Tensor) -> bool:
    try:
        found = logits(name, rest)
    except Exception:  # whatever the model raises
        return True
    return apart(found, complete) > LARGE * float(complete[complete > FILL].abs().max())


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_the_mask_is_demanded_and_pictures_and_places_belong_together(name: str) -> None:
    inputs = {key: value for key, value in zoo.built(name).inputs.items() if key != "labels"}
    model = zoo.visual_lm(name)
    for without in ("attention_mask", "input_ids"):
        with pytest.raises(InputError, match=without):
            model.batch({key: value for key, value in inputs.items() if key != without})
    floats = [key for key, value in inputs.items() if value.is_floating_point()]
    with pytest.raises(InputError):
        model.batch({key: value for key, value in inputs.items() if key not in floats})
    right = {key: value.clone() for key, value in inputs.items()}
    right["attention_mask"][:, -1] = 0
    with pytest.raises(InputError, match="left"):
        model.batch(right)


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_text_alone_has_no_visual_tokens(name: str) -> None:
    model = zoo.visual_lm(name)
    if name in IMAGE_NEEDED:
        with pytest.raises((InputError, Unsupported)):
            encode_and_run(model, name)
        return
    batch, found = encode_and_run(model, name)
    assert len(batch.visual) == 0
    assert batch.images_per_row == (0, 0)
    assert not any(value.is_floating_point() for value in batch.inputs.values())
    assert bool(torch.isfinite(found).any())


def encode_and_run(model: VisualLM, name: str) -> tuple[Batch, Tensor]:
    batch = model.encode(None, [PROMPTS[0], PROMPTS[2]])
    return batch, logits(name, batch.inputs)


@pytest.mark.parametrize("name", sorted(set(WITH_PROCESSOR) & ONE_IMAGE))
def test_two_images_are_refused_where_a_prompt_has_place_for_one(name: str) -> None:
    size = zoo.built(name).size
    with pytest.raises(InputError, match="one image"):
        zoo.visual_lm(name).encode([[noise(size, 1), noise(size, 2)]], [PROMPTS[0]])


def test_a_text_that_got_visual_tokens_without_an_image_is_refused() -> None:
    """BLIP-2's processor puts image tokens before every text as soon as there is one image."""
    image = noise(zoo.built("blip-2").size, 1)
    with pytest.raises(InputError, match="sample 1"):
        zoo.visual_lm("blip-2").encode([[image], []], ["what is this ?", "a b"])


def test_a_prompt_shows_images_that_come_first_by_themselves() -> None:
    image = noise(zoo.built("paligemma").size, 1)
    batch = zoo.visual_lm("paligemma").encode([[image, image]], ["what is this ?"])
    assert batch.prompts == ("<image><image>what is this ?",)


@pytest.mark.parametrize("name", PROMPTS_WITH_VIDEO)
def test_a_video_equals_the_processor_called_directly(name: str) -> None:
    made = zoo.built(name)
    film = frames(3, made.size).permute(0, 2, 3, 1).numpy()
    model = zoo.visual_lm(name)
    expected = with_video(name, made)
    for video in (film, [noise(made.size, seed) for seed in range(3)]):
        batch = model.encode(None, PROMPTS_WITH_VIDEO[name], videos=video)
        for key in batch.inputs:
            torch.testing.assert_close(batch.inputs[key], expected[key], atol=PREPARED, rtol=0)
        assert batch.videos_per_row == (1,)
        assert batch.images_per_row == (0,)


def test_videos_are_refused_where_the_processor_takes_none() -> None:
    film = frames(3, zoo.built("llava").size).permute(0, 2, 3, 1).numpy()
    with pytest.raises(Unsupported, match="video"):
        zoo.visual_lm("llava").encode(None, PROMPTS[0], videos=film)
