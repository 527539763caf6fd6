"""Experiments on attention run as they stand, and their numbers are those of plain hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builders.scripts import experiment
from embedlens import VisualLM
from embedlens.analyses import attention_map
from oracles.eager_weights import scaled, softmax_changed, weights_of
from oracles.torch_hooks import attached
from tolerances import EQUAL, MOVED

pytestmark = pytest.mark.full


def test_attention_over_the_image_is_what_eager_attention_gives_to_it(
    shipped: VisualLM, plain: Any
) -> None:
    run = experiment("attention_over_image").main(shipped)
    layers = plain.model.language_model.layers
    with weights_of({i: layer.self_attn for i, layer in enumerate(layers)}) as expected:
        plain(**run.batch.inputs, use_cache=False)
    seen = run.batch.inputs["input_ids"][0] == plain.config.image_token_id
    for layer, weights in expected.items():
        mine = run.attention_weights[layer][0]
        assert float((mine - weights[0, :, -1, seen]).abs().max()) < EQUAL
    panels = attention_map(run, layers=[2, 3], heads=[0, 1]).axes[:4]
    assert [panel.get_title(loc="left").split(":")[0] for panel in panels] == [
        f"layer {layer}, head {head}" for layer in (2, 3) for head in (0, 1)
    ]


def test_redistribution_is_what_hooks_do_by_hand(shipped: VisualLM, plain: Any) -> None:
    """Massive dimensions, sinks, heads and the redistribution, each worked out again."""
    redistribution = experiment("attention_redistribution")
    batch, plan, run = redistribution.main(shipped)
    inputs, layers = batch.inputs, plain.model.language_model.layers
    seen = inputs["input_ids"][0] == plain.config.image_token_id
    streams: dict[int, torch.Tensor] = {}

    def keep(index: int) -> Any:
        return lambda _, args: streams.__setitem__(index, args[0][0, seen])

    handles = [layer.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]
    mixers = {i: layer.self_attn for i, layer in enumerate(layers)}
    with attached(handles), weights_of(mixers) as weights:
        clean = plain(**inputs, use_cache=False).logits[0, -1]
    later = range(redistribution.FIRST_LAYER, len(layers))
    stand_out = {i: (s / s.square().mean(1, keepdim=True).sqrt()).abs() for i, s in streams.items()}
    order = torch.stack([stand_out[i].mean(0) for i in later]).sum(0).argsort(descending=True)
    changes = {}
    for i in later:
        sink = (
            stand_out[i][:, order[: redistribution.DIMENSIONS]].max(1).values
            > redistribution.THRESHOLD
        )
        mine = weights[i][0, :, -1, seen]
        heads = [
            head
            for head, row in enumerate(mine)
            if row.sum() >= 0.2 and row[sink].sum() <= 0.5 * row.sum()
        ]
        if not heads or not sink.any():
            continue
        pairs = torch.zeros(1, len(seen), len(seen), dtype=torch.bool)
        pairs[0, -1, seen] = sink
        takers = torch.zeros(1, len(seen), dtype=torch.bool)
        takers[0, seen] = ~sink
        changes[mixers[i]] = scaled(pairs, 0.6, takers, heads)
    assert len(changes) == len(plan) > 0
    with softmax_changed(changes):
        expected = plain(**inputs, use_cache=False).logits[0, -1]
    spread = max(1.0, float(clean.std()))
    assert float((run.logits[0] - expected).abs().max()) < EQUAL * spread
    assert float((clean - expected).abs().max()) > MOVED
