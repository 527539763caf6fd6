"""Tokens that come in late, where the model adds visual features between the layers they skip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders.copies import layers_of, opened, plain
from builders.generations import generated
from embedlens import InjectTokens, Plan
from families.zoo import built
from oracles.knockouts import longer
from oracles.late_entry import entering_late
from tolerances import EQUAL, MOVED

ADDING = ("qwen3_vl", "granite4_vision")


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


# On a model that adds nothing, skipping layers is entering with the states of layer 0.
@pytest.mark.parametrize("norm", ["raw", "rescaled", "matched"])
@pytest.mark.parametrize("name", [*ADDING, "llava"])
def test_entering_late_is_skipping_the_layers_below_unseen(name: str, norm: str) -> None:
    model, copied, seen = opened(name, "eager"), plain(name), set()
    batch = model.batch(built(name).inputs)
    late = model.anatomy.visual_mask(batch.inputs)
    with torch.no_grad():
        clean = copied(**batch.inputs).logits[:, -1]
    for layer in range(1, model.n_layers):
        with entering_late(layers_of(copied, name), late, layer, norm):
            expected = copied(**batch.inputs).logits[:, -1]
        found = model.run(batch, Plan(InjectTokens(layer=layer, norm=norm))).logits
        assert gap(found, expected) < EQUAL
        seen.add(gap(expected, clean) > MOVED)
    assert seen == {True}


def test_what_is_written_behind_tokens_that_came_in_late_equals_no_cache() -> None:
    name, layer, count = "qwen3_vl", 2, 3
    model, copied = opened(name, "eager"), plain(name)
    batch = model.batch(built(name).inputs)
    ids, logits = generated(model, Plan(InjectTokens(layer=layer)), batch, count)
    late = model.anatomy.visual_mask(batch.inputs)
    late = torch.cat([late, torch.zeros(1, count, dtype=torch.bool)], 1)
    inputs = longer(name, batch.inputs, ids)
    with entering_late(layers_of(copied, name), late, layer):
        expected = copied(**inputs).logits
    for step, found in enumerate(logits):
        assert gap(found, expected[:, step - count - 1]) < EQUAL, step


def test_words_say_what_the_tokens_enter_with() -> None:
    said = Plan(InjectTokens(layer=3)).describe(opened("qwen3_vl", "eager"))
    assert "entered layer 0 and what the model adds to them before layers 1" in said
    assert "adds" not in Plan(InjectTokens(layer=2)).describe(opened("llava", "eager"))
