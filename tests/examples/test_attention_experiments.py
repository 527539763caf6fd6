"""Experiments on attention run as they stand, and their numbers are those of plain hooks."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from embedlens import VisualLM
from embedlens.analyses import attention_map
from oracles.eager_weights import scaled, softmax_changed, weights_of
from oracles.torch_hooks import attached
from processes import ROOT
from tolerances import EQUAL, MOVED

FOLDER = ROOT / "examples" / "experiments"
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def eager() -> Any:
    """The shipped model as transformers loads it, with eager attention."""
    model = LlavaForConditionalGeneration.from_pretrained(
        ROOT / "lens" / "shipped", dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_attention_over_the_image_is_what_eager_attention_gives_to_it(
    shipped: VisualLM, eager: Any
) -> None:
    run = script("attention_over_image").main(shipped)
    layers = eager.model.language_model.layers
    with weights_of({i: layer.self_attn for i, layer in enumerate(layers)}) as expected:
        eager(**run.batch.inputs, use_cache=False)
    seen = run.batch.inputs["input_ids"][0] == eager.config.image_token_id
    for layer, weights in expected.items():
        mine = run.attention_weights[layer][0]
        assert float((mine - weights[0, :, -1, seen]).abs().max()) < EQUAL
    panels = attention_map(run, layers=[2, 3], heads=[0, 1]).axes[:4]
    assert [panel.get_title(loc="left").split(":")[0] for panel in panels] == [
        f"layer {layer}, head {head}" for layer in (2, 3) for head in (0, 1)
    ]


def test_redistribution_is_what_hooks_do_by_hand(shipped: VisualLM, eager: Any) -> None:
    """Massive dimensions, sinks, heads and the redistribution, each worked out again."""
    experiment = script("attention_redistribution")
    batch, plan, run = experiment.main(shipped)
    inputs, layers = batch.inputs, eager.model.language_model.layers
    seen = inputs["input_ids"][0] == eager.config.image_token_id
    streams: dict[int, torch.Tensor] = {}

    def keep(index: int) -> Any:
        return lambda _, args: streams.__setitem__(index, args[0][0, seen])

    handles = [layer.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]
    mixers = {i: layer.self_attn for i, layer in enumerate(layers)}
    with attached(handles), weights_of(mixers) as weights:
        clean = eager(**inputs, use_cache=False).logits[0, -1]
    later = range(experiment.FIRST_LAYER, len(layers))
    stand_out = {i: (s / s.square().mean(1, keepdim=True).sqrt()).abs() for i, s in streams.items()}
    order = torch.stack([stand_out[i].mean(0) for i in later]).sum(0).argsort(descending=True)
    changes = {}
    for i in later:
        sink = stand_out[i][:, order[: experiment.DIMENSIONS]].max(1).values > experiment.THRESHOLD
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
        expected = eager(**inputs, use_cache=False).logits[0, -1]
    spread = max(1.0, float(clean.std()))
    assert float((run.logits[0] - expected).abs().max()) < EQUAL * spread
    assert float((clean - expected).abs().max()) > MOVED
