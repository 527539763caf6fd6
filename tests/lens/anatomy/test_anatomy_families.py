"""Anatomy on every tiny family, against plain forwards and hooks that share no code with it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from embedlens import Anatomy, InputError, Unsupported
from embedlens.lens.anatomy import verification
from families.sublayers import ADDENDS
from families.zoo import READABLE, REFUSED, UNEXPLAINED, anatomy, built
from oracles.torch_hooks import attached
from tolerances import ACCUMULATED, MEASURED

# What is particular about families, as measured for transformers 5.23 by hand; all of it.
TRAITS: dict[str, set[str]] = {
    "llava": set(),
    "internvl": set(),
    "idefics3": set(),
    "mistral3": set(),
    "janus": set(),
    "llava_next": {"learned_separators"},
    "qwen2_5_vl": {"mrope"},
    "qwen3_vl": {"deepstack", "mrope"},
    "qwen3_5": {"linear_mixers", "mrope"},
    "kimi_k25": {"moe"},
    "gemma3": {"bidirectional_image", "sliding_window"},
    "paligemma": {"bidirectional_image"},
    "paligemma2": {"bidirectional_image", "softcap", "sliding_window"},
    "gemma3n": {"stacked_residual", "sliding_window", "other_rows_written"},
    "gemma4": {"per_layer_inputs", "sliding_window"},
    "ovis2": {"other_rows_written"},
    "idefics2": {"resampler"},
    "blip-2": {"resampler"},
    "instructblip": {"resampler"},
    "kosmos-2": {"embeds_itself", "resampler", "rows_changed_inside"},
    "aria": {"resampler", "moe"},
    "llama4": {"moe", "chunked_attention"},
    "molmo2": {"added_features", "bidirectional_image"},
    "granite4_vision": {"deepstack", "late_features", "scaled_residual", "scaled_logits"},
    "chameleon": {"embeds_itself", "masked_logits"},
    "lfm2_vl": {"linear_mixers"},
    "nemotron_h_omni": {"linear_mixers", "moe", "single_sublayer"},
}
# Visual rows that no pixel changes: newlines and separators, and codes that happen to stay.
UNCHANGED = {
    "chameleon": 1,
    "emu3": 9,
    "deepseek_ocr2": 1,
    "granite4_vision": 4,
    "hunyuan_vl": 4,
    "llava_next": 4,
    "llava_next_video": 6,
    "llava_onevision": 6,
    "llava_onevision_shrunk": 4,
    "phi4_multimodal": 21,
}
INJECTIONS = {"qwen3_vl": (1, 2), "granite4_vision": (0, 1, 2, 3, 4), "llava": ()}


@contextmanager
def listening(model: Any, hooks: dict[str, Any], *, before: bool = False) -> Iterator[None]:
    modules = dict(model.named_modules())
    handles = [
        modules[path].register_forward_pre_hook(hook, with_kwargs=True)
        if before
        else modules[path].register_forward_hook(hook)
        for path, hook in hooks.items()
    ]
    with attached(handles):
        yield


def first(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else first(next(iter(value)))


def entering_layer(model: Any, layer: str, inputs: dict[str, Tensor]) -> Tensor:
    seen: list[Tensor] = []

    def hook(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(first(args if args else kwargs["hidden_states"]).clone())

    with torch.no_grad(), listening(model, {layer: hook}, before=True):
        model(**inputs)
    return seen[0]


def repainted(inputs: Any) -> dict[str, Tensor]:
    """The same inputs with other pixels; whole numbers may be indices and stay."""
    return {
        name: torch.where(value == value.round(), value, -0.7 * value)
        if value.is_floating_point() and len(value.unique()) > 2
        else value
        for name, value in inputs.items()
    }


@pytest.mark.quick(*READABLE)
@pytest.mark.parametrize("name", READABLE)
def test_visual_positions_are_where_pixels_reach_the_sequence(name: str) -> None:
    family, found = built(name), anatomy(name)
    inputs = {k: v for k, v in family.inputs.items() if k != "labels"}
    rows = [entering_layer(family.model, found.layers[0], i) for i in (inputs, repainted(inputs))]
    length = family.inputs["input_ids"].shape[1]
    # Some models keep several streams, before or behind the axis of tokens.
    token = next(i for i, size in enumerate(rows[0].shape[1:], 1) if size == length)
    changed = (rows[0] - rows[1]).abs().movedim(token, 0).flatten(1).amax(1) > 0
    visual = found.visual_mask(family.inputs)[0]
    assert visual.any()
    assert not (changed & ~visual).any()
    assert (visual & ~changed).sum() == UNCHANGED.get(name, 0)


@pytest.mark.parametrize("name", READABLE)
def test_addends_sum_to_what_every_layer_adds_on_another_image(name: str) -> None:
    family, found = built(name), anatomy(name)
    if "sublayers" in found.refusals:
        assert "stacked_residual" in found.capabilities
        return
    inputs = repainted({k: v for k, v in family.inputs.items() if k != "labels"})
    stream: dict[str, list[Tensor]] = {}
    outputs: dict[str, Tensor] = {}

    def before(path: str) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            stream[path] = [first(args if args else kwargs["hidden_states"]).clone()]

        return hook

    def after(path: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            if path in stream:
                stream[path].append(first(output).clone())
            else:
                outputs[path] = first(output).clone()

        return hook

    sublayers = [p for p in (*found.attention, *found.ffn) if p is not None]
    with (
        torch.no_grad(),
        listening(family.model, {p: before(p) for p in found.layers}, before=True),
        listening(family.model, {p: after(p) for p in (*found.layers, *sublayers)}),
    ):
        family.model(**inputs)
    for index, path in enumerate(found.layers):
        entering, leaving = stream[path]
        addends = [
            scale * outputs[addend].reshape(entering.shape)
            for scale, addend in (
                (found.attention_scale[index], found.attention[index]),
                (found.ffn_scale[index], found.ffn[index]),
            )
            if addend is not None
        ]
        left = leaving - entering - sum(addends)
        if "per_layer_inputs" in found.capabilities:
            continue  # a third addend, which is neither attention nor FFN
        assert left.norm() <= ACCUMULATED * (leaving - entering).norm(), path


@pytest.mark.parametrize("name", sorted(ADDENDS))
def test_addends_are_the_modules_measured_by_hand(name: str) -> None:
    found = anatomy(name)
    attention, ffn = ADDENDS[name]
    assert found.attention == tuple(f"{layer}.{attention}" for layer in found.layers)
    assert found.ffn == tuple(f"{layer}.{ffn}" for layer in found.layers)


@pytest.mark.parametrize("name", sorted(TRAITS))
def test_what_is_particular_about_a_family_is_found_and_nothing_else(name: str) -> None:
    assert anatomy(name).capabilities == TRAITS[name]


@pytest.mark.parametrize("name", sorted(INJECTIONS))
def test_layers_that_receive_features_from_outside_are_known(name: str) -> None:
    assert anatomy(name).injections == INJECTIONS[name]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llava", "gemma3", "granite4_vision", "qwen3_vl", "chameleon"])
def test_half_precision_finds_the_same_anatomy(name: str, dtype: torch.dtype) -> None:
    family, full = built(name), anatomy(name)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in family.inputs.items()}
    half = Anatomy.of(copy.deepcopy(family.model).to(dtype), inputs)
    same = ("attention", "ffn", "mixer", "visual_ids", "projector", "capabilities", "injections")
    for field in same:
        assert getattr(half, field) == getattr(full, field), field


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mllama", "cross-attention"),
        ("idefics", "cross-attention"),
        ("florence2", "encoder-decoder"),
        ("blip-2-t5", "encoder-decoder"),
        ("t5gemma2", "encoder-decoder"),
        ("vision-encoder-decoder", "encoder-decoder"),
        ("llama", "text-only"),
    ],
)
def test_other_architectures_are_refused_with_the_reason(name: str, reason: str) -> None:
    family = built(name)
    for inputs in (None, family.inputs):
        with pytest.raises(Unsupported, match=reason):
            Anatomy.of(family.model, inputs)


def test_every_refused_family_has_its_reason_tested() -> None:
    marks = test_other_architectures_are_refused_with_the_reason.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for mark in marks for case in mark.args[1]} == set(REFUSED)


@pytest.mark.parametrize("name", UNEXPLAINED)
def test_what_does_not_add_up_is_refused_and_says_what_to_pass(name: str) -> None:
    family = built(name)
    with pytest.raises(Unsupported, match=r"(attention=|norm=|input_ids)"):
        Anatomy.of(family.model, family.inputs)


def test_accepting_an_unexplained_stream_refuses_only_what_needs_it() -> None:
    family = built("muse_spark")
    found = Anatomy.of(family.model, family.inputs, accept={"sublayers"})
    assert found.seen_image
    assert set(found.attention) == {None}
    with pytest.raises(Unsupported, match="add up"):
        found.require("sublayers")
    found.require("residual")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_token_id": 1000}, "stands nowhere in input_ids"),
        ({"image_token_id": int(built("llava").inputs["input_ids"][0, -1])}, r"none at \d of "),
        ({"ffn": "input_layernorm"}, "relative error"),
        ({"attention": "mlp", "ffn": "input_layernorm"}, "relative error"),
        ({"ffn": "nonsense"}, "no submodule 'nonsense'"),
        ({"norm": "model.language_model.layers.0.input_layernorm"}, "differs from the model's"),
        ({"decoder": "model.multi_modal_projector"}, "owns no list of layers"),
    ],
)
def test_a_wrong_word_of_the_user_is_refused_with_numbers(given: Any, words: str) -> None:
    family = built("llava")
    with pytest.raises(Unsupported, match=words):
        Anatomy.of(family.model, family.inputs, **given)


def test_a_right_word_of_the_user_changes_nothing() -> None:
    family = built("gemma3")
    found = Anatomy.of(family.model, family.inputs)
    given = Anatomy.of(
        family.model,
        family.inputs,
        decoder="model.language_model",
        norm="model.language_model.norm",
        head="lm_head",
        attention="post_attention_layernorm",
        ffn="post_feedforward_layernorm",
        image_token_id=found.image_token_id,
    )
    assert given == found


def test_layers_that_somebody_wrapped_out_of_sight_are_refused() -> None:
    """A wrapper that hides attention from its arguments would leave an anatomy without any."""

    class Hidden(torch.nn.Module):
        def __init__(self, attention: torch.nn.Module) -> None:
            super().__init__()
            self.inner = [attention]  # no submodule, and no name of an argument

        def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
            return torch.zeros_like(hidden_states), None

    model = copy.deepcopy(built("llava").model)
    for layer in model.get_submodule(anatomy("llava").decoder).layers:
        layer.self_attn = Hidden(layer.self_attn)
    with pytest.raises(Unsupported, match="no layer has a submodule that mixes tokens"):
        Anatomy.of(model, built("llava").inputs)


def test_inputs_that_cannot_be_verified_on_are_refused() -> None:
    family = built("llava")
    text = {k: v for k, v in family.inputs.items() if not v.is_floating_point()}
    two = {k: torch.cat([v, v]) for k, v in family.inputs.items()}
    for inputs, words in ((text, "no image tensor"), (two, r"must be \[1, token\]")):
        with pytest.raises(InputError, match=words):
            Anatomy.of(family.model, inputs)
    with pytest.raises(InputError, match="accept"):
        Anatomy.of(family.model, family.inputs, accept={"everything"})


def test_text_alone_verifies_all_but_the_image() -> None:
    family = built("llava")
    seen, unseen = Anatomy.of(family.model, family.inputs), Anatomy.of(family.model)
    assert seen.seen_image
    assert not unseen.seen_image
    assert unseen.visual_error != unseen.visual_error
    assert (unseen.layers, unseen.attention, unseen.ffn) == (seen.layers, seen.attention, seen.ffn)


def test_an_id_no_configuration_names_is_found_by_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family, expected = built("llava"), anatomy("llava")
    monkeypatch.setattr(verification, "token_id", lambda *_: None)
    found = Anatomy.of(family.model, family.inputs)
    assert found.visual_ids == expected.visual_ids
    assert found.image_token_id == expected.image_token_id


def test_without_an_id_or_an_image_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "token_id", lambda *_: None)
    with pytest.raises(Unsupported, match="names no image token"):
        Anatomy.of(built("llava").model)


def test_shared_key_layers_that_skip_tokens_are_known() -> None:
    found = anatomy("gemma4")
    shared = built("gemma4").model.config.get_text_config().num_kv_shared_layers
    assert found.last_token_layers == tuple(range(found.n_layers - shared, found.n_layers))


def test_gemma_scales_its_word_embeddings() -> None:
    for name, scale in (("gemma3", 32**0.5), ("paligemma", 32**0.5), ("llava", 1.0)):
        assert anatomy(name).embedding_scale == pytest.approx(scale, MEASURED)
