"""Telling what a layer adds, on layers written out here so that the truth is known."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedlens import Unsupported
from embedlens.lens.anatomy.attention_and_ffn import LayerAddends, find_addends
from embedlens.lens.anatomy.decoder_parts import Parts
from embedlens.lens.anatomy.recorded_forward import record
from tolerances import EQUAL, LARGE

WIDTH, LENGTH = 16, 6


class Mixer(nn.Module):
    """Every token gathers all others; told about masks, as attention is."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, stream: Tensor, attention_mask: Any = None) -> tuple[Tensor, None]:
        return self.value(stream).cumsum(1), None


class Layer(nn.Module):
    """One layer whose forward is the given function of (layer, stream)."""

    def __init__(self, update: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.ffn = nn.Linear(WIDTH, WIDTH)
        self.mixer = Mixer()
        self.second_ffn = nn.Linear(WIDTH, WIDTH)
        self.after_mixer = nn.LayerNorm(WIDTH)
        self.after_ffn = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(0.5)
        self.wrapped = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        self.update = update

    def attend(self, stream: Tensor) -> Tensor:
        return self.mixer(stream, attention_mask=None)[0]

    def forward(self, stream: Tensor) -> Tensor:
        return self.update(self, stream)


class Toy(nn.Module):
    def __init__(self, update: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, WIDTH)
        self.layers = nn.ModuleList([Layer(update)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 20)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        stream = self.embedding(input_ids)
        for layer in self.layers:
            stream = layer(stream)
        return SimpleNamespace(logits=self.head(self.norm(stream)))


def found(update: Callable[[Any, Tensor], Tensor], **given: str) -> LayerAddends:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Toy(update)
    parts = Parts(model, model.layers, model.embedding, model.norm, model.head)
    ids = torch.arange(LENGTH)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    recording = record(model, parts, inputs, torch.arange(LENGTH) < 2)
    return find_addends("layers.0", model.layers[0], recording.layers[0], torch.float32, **given)


def one_after_the_other(layer: Any, stream: Tensor) -> Tensor:
    stream = stream + layer.attend(stream)
    return stream + layer.ffn(stream)


def ffn_first_in_parallel(layer: Any, stream: Tensor) -> Tensor:
    return stream + layer.ffn(stream) + layer.attend(stream)


def norms_behind(layer: Any, stream: Tensor) -> Tensor:
    stream = stream + layer.after_mixer(layer.attend(stream))
    return stream + layer.after_ffn(layer.ffn(stream))


def through_dropout(layer: Any, stream: Tensor) -> Tensor:
    stream = stream + layer.dropout(layer.attend(stream))
    return stream + layer.ffn(stream)


def multiplied(layer: Any, stream: Tensor) -> Tensor:
    stream = stream + 0.25 * layer.attend(stream)
    return stream + 0.5 * layer.ffn(stream)


def scaled_as_a_whole(layer: Any, stream: Tensor) -> Tensor:
    return 0.3 * one_after_the_other(layer, stream)


def inside_a_container(layer: Any, stream: Tensor) -> Tensor:
    stream = stream + layer.attend(stream)
    return stream + layer.wrapped[0](stream)


@pytest.mark.parametrize(
    ("update", "attention", "ffn", "scales", "keep"),
    [
        (one_after_the_other, "mixer", "ffn", (1, 1), 1),
        (ffn_first_in_parallel, "mixer", "ffn", (1, 1), 1),
        (norms_behind, "after_mixer", "after_ffn", (1, 1), 1),
        (through_dropout, "mixer", "ffn", (1, 1), 1),
        (multiplied, "mixer", "ffn", (0.25, 0.5), 1),
        (scaled_as_a_whole, "mixer", "ffn", (0.3, 0.3), 0.3),
        (inside_a_container, "mixer", "wrapped.0", (1, 1), 1),
    ],
)
def test_addends_of_a_layer_are_found(
    update: Any, attention: str, ffn: str, scales: tuple[float, float], keep: float
) -> None:
    addends = found(update)
    assert (addends.attention, addends.ffn, addends.mixer) == (attention, ffn, "mixer")
    assert (addends.attention_scale, addends.ffn_scale) == pytest.approx(scales, LARGE)
    assert addends.keep == pytest.approx(keep, LARGE)
    assert addends.others == ()
    assert addends.error < EQUAL


def test_a_layer_of_one_sublayer_has_only_that() -> None:
    mixing = found(lambda layer, stream: stream + layer.attend(stream))
    assert (mixing.attention, mixing.ffn, mixing.mixer) == ("mixer", None, "mixer")
    thinking = found(lambda layer, stream: stream + layer.ffn(stream))
    assert (thinking.attention, thinking.ffn, thinking.mixer) == (None, "ffn", None)


def test_a_second_ffn_is_not_passed_over() -> None:
    def update(layer: Any, stream: Tensor) -> Tensor:
        stream = stream + layer.attend(stream)
        return stream + layer.ffn(stream) + layer.second_ffn(stream)

    addends = found(update)
    assert (addends.attention, addends.ffn) == ("mixer", "ffn")
    assert addends.others == ("second_ffn",)


@pytest.mark.parametrize(
    "update",
    [
        # A gate per channel is no factor, a product no sum, and a new stream no residual one.
        lambda layer, stream: stream * layer.after_ffn.weight * 0.5 + stream.tanh(),
        lambda layer, stream: stream * (1 + layer.attend(stream)),
        lambda layer, stream: layer.ffn(stream),
    ],
)
def test_what_is_no_sum_is_refused(update: Any) -> None:
    with pytest.raises(Unsupported, match="add up"):
        found(update)


def test_the_users_word_settles_which_of_two_equal_modules_is_meant() -> None:
    assert found(through_dropout, attention="dropout").attention == "dropout"
    with pytest.raises(Unsupported, match="no submodule 'mlp'"):
        found(one_after_the_other, ffn="mlp")
