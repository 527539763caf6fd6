"""NaN and infinite numbers are named with the module they come from; healthy ones pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from embedlens import (
    Batch,
    EmbedLens,
    LogitLens,
    Markers,
    Plan,
    ReplaceTokens,
    ScaleTokens,
    TextBank,
    Unsupported,
    VisualLM,
)
from embedlens.lens.errors import InputError, NotFinite
from families.family import noise
from families.zoo import built, visual_lm

LAYER = "model.language_model.layers.1.mlp.down_proj"
PLACES = {
    LAYER: f"layer 1 ({LAYER})",
    "model.vision_tower.encoder.layers.0.mlp.fc1": "vision_tower",
    "model.multi_modal_projector.linear_1": "multi_modal_projector",
    "lm_head": "lm_head",
    "model.language_model.embed_tokens": "embed_tokens",
}
PLAN = Plan(ScaleTokens(factor=0.5))
PASSES: dict[str, Callable[[VisualLM, Batch], Any]] = {
    "run": lambda model, batch: model.run(batch),
    "run with a plan": lambda model, batch: model.run(batch, PLAN),
    "all logits": lambda model, batch: model.run(batch, logits="all"),
    "run_many": lambda model, batch: model.run_many(batch, [None, PLAN, PLAN]),
    "generate": lambda model, batch: model.generate(batch, max_new_tokens=2),
    "generate_ids": lambda model, batch: model.generate_ids(batch, PLAN, max_new_tokens=2),
    "samples": lambda model, batch: model.generate(batch, do_sample=True, max_new_tokens=2),
    "beams": lambda model, batch: model.generate(batch, num_beams=2, max_new_tokens=2),
    "score": lambda model, batch: model.score(batch, ["a", "b c"]),
    "score the end": lambda model, batch: model.score(batch, ["a", "b c"], end=True),
    "score_many": lambda model, batch: model.score_many(batch, ["a", "b c"], [None, PLAN]),
    "text bank": lambda model, _: TextBank.of(model, ["what is red and blue ?"]),
    "markers": lambda model, _: Markers.discover(model, [tiny.image(i) for i in range(3)]),
}


def opened(dtype: torch.dtype = torch.float32) -> tuple[VisualLM, Batch]:
    built = tiny.build()
    model = VisualLM(built.model.to(dtype), built.processor)
    prompts = [tiny.PROMPTS["middle"], tiny.PROMPTS["short"]]
    return model, model.encode([tiny.image(0), tiny.image(1)], prompts)


@pytest.fixture(scope="module")
def half() -> tuple[VisualLM, Batch]:
    return opened(torch.float16)


@pytest.mark.parametrize("name", PASSES)
def test_what_overflows_float16_is_named_with_its_layer_and_the_remedy(
    half: tuple[VisualLM, Batch], name: str
) -> None:
    model, batch = half
    PASSES[name](model, batch)
    weight = model.hf.get_submodule(LAYER).weight
    kept = weight.detach().clone()
    weight.data.mul_(6e4)
    try:
        assert weight.isfinite().all()
        with pytest.raises(NotFinite) as refused:
            PASSES[name](model, batch)
    finally:
        weight.data.copy_(kept)
    said = str(refused.value)
    assert "layer 1 (" in said
    assert "bfloat16" in said
    assert "\n" not in said
    PASSES[name](model, batch)


@pytest.mark.parametrize("path", PLACES)
def test_weights_that_are_nan_are_named_wherever_they_are(path: str) -> None:
    model, batch = opened()
    module: Any = model.hf.get_submodule(path)
    module.weight.data[batch.inputs["input_ids"][0, -1] if "embed" in path else 0] = float("nan")
    for ask in (
        lambda: model.run(batch),
        lambda: model.generate(batch, max_new_tokens=1),
        lambda: VisualLM(copy.deepcopy(model.hf), tiny.processor()).run(batch),
    ):
        with pytest.raises(NotFinite, match="own weights") as refused:
            ask()
        assert PLACES[path] in str(refused.value)
    if path == "lm_head":
        # The states are fine: who asks for no logits gets them.
        assert model.entry(batch).isfinite().all()


def test_a_text_model_is_refused_for_nan_and_not_taken_for_one_that_needs_images() -> None:
    built = tiny.build()
    built.model.get_submodule(LAYER).weight.data[0] = float("inf")
    with pytest.raises(NotFinite, match="layer 1"):
        VisualLM(built.model)


def test_numbers_that_go_wrong_while_writing_are_seen() -> None:
    model, batch = opened()

    def later(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output * float("nan") if args[0].shape[1] == 1 else output

    handle = model.hf.get_submodule(LAYER).register_forward_hook(later)
    model.run(batch)
    model.generate(batch, max_new_tokens=1)
    with pytest.raises(NotFinite, match="layer 1"):
        model.generate(batch, max_new_tokens=3)
    handle.remove()
    model.generate(batch, max_new_tokens=3)


def test_one_state_is_enough_and_only_where_it_is_read() -> None:
    model, batch = opened()
    # Nothing looks at the last position but itself.
    where = torch.zeros(batch.inputs["input_ids"].shape, dtype=torch.bool)
    where[0, -1] = True

    def spoil(_: nn.Module, __: Any, output: Any) -> Any:
        return output.masked_fill(where[..., None], float("inf"))

    handle = model.hf.get_submodule("model.language_model.layers.3").register_forward_hook(spoil)
    layers = [0, 3]
    kept = model.run(batch, capture="residual", layers=layers, tokens="all", logits=None)
    assert all(states.isfinite().all() for states in kept.residual.values())
    with pytest.raises(NotFinite, match="layer 3"):
        model.run(batch, capture="residual", layers=[4], tokens="all", logits=None)
    with pytest.raises(NotFinite, match="layer 3"):
        model.run(batch)
    handle.remove()


def test_padding_may_be_anything() -> None:
    model, batch = opened()
    padding = ~batch.inputs["attention_mask"].bool()
    assert padding.any()

    def spoil(_: nn.Module, __: Any, logits: Any) -> Any:
        return logits.masked_fill(padding[..., None], float("nan"))

    expected = model.run(batch, logits="all").logits
    handle = model.hf.lm_head.register_forward_hook(spoil)
    found = model.run(batch, logits="all").logits
    handle.remove()
    assert expected is not None
    assert found is not None
    assert torch.equal(found[~padding], expected[~padding])


def test_readouts_refuse_matrices_that_hold_nan() -> None:
    model, batch = opened()
    states = model.entry(batch)
    for lens, path in ((EmbedLens, "model.language_model.embed_tokens"), (LogitLens, "lm_head")):
        lens(model).read(states, k=1)
        weight: Any = model.hf.get_submodule(path).weight
        kept = weight[7].detach().clone()
        weight.data[7] = float("nan")
        with pytest.raises(NotFinite):
            lens(model).read(states, k=1)
        weight.data[7] = kept


OUTSIDE = (-100, -1, len(tiny.VOCABULARY), 10**6, 2**40)


@pytest.mark.parametrize("wrong", OUTSIDE)
def test_ids_outside_the_embedding_are_named(wrong: int) -> None:
    model, batch = opened()
    for place in (-1, 0):
        ids = batch.inputs["input_ids"].clone()
        ids[1, place] = wrong
        inputs = {**batch.inputs, "input_ids": ids}
        by_hand = Batch(inputs, batch.visual, batch.prompts, batch.images, batch.images_per_row)
        asked: tuple[Callable[[], Any], ...] = (
            lambda given=inputs: model.batch(given),
            lambda made=by_hand: model.run(made),
            lambda made=by_hand: model.run_many(made, [None, PLAN]),
            lambda made=by_hand: model.generate(made, max_new_tokens=1),
            lambda: model.score(batch, [[5], [wrong]]),
            lambda: model.score_many(batch, [[5], [wrong]], [None]),
        )
        for ask in asked:
            with pytest.raises(InputError, match=rf"id {wrong}\b.* 75"):
                ask()


def test_a_token_added_to_the_tokenizer_alone_is_named() -> None:
    built = tiny.build()
    built.processor.tokenizer.add_tokens(["zebra"])
    model = VisualLM(built.model, built.processor)
    batch = model.encode(tiny.image(0), "a <image> b")
    for ask in (
        lambda: model.encode(tiny.image(0), "a <image> zebra ?"),
        lambda: model.encode(None, "a zebra ?"),
        lambda: model.score(batch, ["zebra"]),
        lambda: TextBank.of(model, ["what is a zebra ?"]),
    ):
        with pytest.raises(InputError, match=r"id 75 \('zebra'\).*resize_token_embeddings"):
            ask()


def test_a_placeholder_that_the_model_cannot_look_up_is_named() -> None:
    built = tiny.build()
    built.processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    built.processor.image_token, built.processor.image_token_id = "<picture>", 75
    built.model.config.image_token_id = built.model.config.image_token_index = 75
    with pytest.raises(InputError, match=r"id 75 \('<picture>'\)"):
        VisualLM(built.model, built.processor)


def test_ids_that_a_second_table_lacks_are_named() -> None:
    """This model has a shorter table for its layers, and writes ids that it lacks."""
    family, model = built("gemma4"), visual_lm("gemma4")
    batch = model.encode([noise(family.size, 1)], [family.prompt])
    rows = len(model.hf.model.language_model.embed_tokens_per_layer.weight)
    lacking = range(rows, model.anatomy.vocab_size)
    assert lacking
    told: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    others = [i for i in range(model.anatomy.vocab_size) if i not in lacking]
    assert model.generate(batch, suppress_tokens=list(lacking), **told)
    with pytest.raises(InputError, match=rf"id {rows}\b.*per_layer.*suppress_tokens"):
        model.generate(batch, suppress_tokens=[*others, *lacking[1:]], **told)
    with pytest.raises(InputError, match=rf"id {rows}\b.*per_layer"):
        model.score(batch, [[rows, 5]])
    last = Plan(ReplaceTokens(layers="1-2", tokens="last", phase="all", by="zero"))
    assert model.generate(batch, last, suppress_tokens=list(lacking), **told)
    with pytest.raises(Unsupported, match=r"use_cache=False.*last token only"):
        model.generate(batch, last, use_cache=False, **told)
