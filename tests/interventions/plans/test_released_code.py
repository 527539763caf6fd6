"""Plans equal what the released code of the paper computed on the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from embedlens import (
    AblateAttention,
    Batch,
    BlockAttention,
    Markers,
    Plan,
    PruneTokens,
    VisualLM,
    WithdrawTokens,
    ZeroFFN,
    paper,
)

OUTPUTS = Path(__file__).parents[2] / "released_code" / "outputs.safetensors"
VIT_SINK, LLM_SINK, DEAD = 11, 26, 30  # words of the small model's vocabulary
BEFORE, VISUAL = 35, 576  # text in front of the image, and its tokens
CLOSE = 1e-4  # of logits of some ten
PRESETS = {
    "clean": Plan(),
    "skip_all_1.5": paper.skip([1.5]),
    "skip_all_mlp_all": paper.skip([0.5, 1.5, 2.5, 3.5, 4.5]),
    "skip_sink_0.5_1_1.5": paper.skip([0.5, 1, 1.5], [LLM_SINK]),
    "skip_sink2_1.5_3": paper.skip([1.5, 3], [VIT_SINK, LLM_SINK]),
    "skip_alive_1_2.5": paper.skip([1, 2.5], [VIT_SINK, DEAD, LLM_SINK, -1]),
    "attn_vv_2_3": paper.skip([2, 3], knockout="vv"),
    "attn_skip_2": paper.skip([2]),
    "attn_vt_1_4": paper.skip([1, 4], knockout="vt"),
    "attn_skip_0": paper.skip([0]),
    "prune_dead": paper.prune([DEAD]),
    "prune_all3": paper.prune([DEAD, LLM_SINK, VIT_SINK]),
    "prune_keep_useless": paper.prune([DEAD, LLM_SINK, VIT_SINK, -2]),
    "entry_2": paper.prune(entry=2),
    "exit_3": paper.prune(exit=3),
}
SINKS = "vit-sink | llm-sink"
# The same in plain operations, wherever these can say it.
PLAIN = {
    "skip_all_1.5": Plan(ZeroFFN(layers=1)),
    "skip_all_mlp_all": Plan(ZeroFFN(layers="all")),
    "skip_sink_0.5_1_1.5": Plan(
        ZeroFFN(layers=[0, 1], tokens="llm-sink"), AblateAttention(layers=1, tokens="llm-sink")
    ),
    "skip_sink2_1.5_3": Plan(
        ZeroFFN(layers=1, tokens=SINKS), AblateAttention(layers=3, tokens=SINKS)
    ),
    "skip_alive_1_2.5": Plan(
        AblateAttention(layers=1, tokens="alive"), ZeroFFN(layers=2, tokens="alive")
    ),
    "attn_vv_2_3": Plan(AblateAttention(layers=[2, 3])),
    "attn_skip_2": Plan(AblateAttention(layers=2)),
    "attn_vt_1_4": Plan(
        AblateAttention(layers=[1, 4]),
        BlockAttention(queries="text", keys="visual", layers=[1, 4], renormalise=False),
    ),
    "prune_dead": Plan(PruneTokens(tokens="dead")),
    "prune_all3": Plan(PruneTokens(tokens=f"dead | {SINKS}")),
    "prune_keep_useless": Plan(PruneTokens(tokens="alive")),
    "exit_3": Plan(WithdrawTokens(layer=3)),
}


class Fixed(nn.Module):
    """Stands where the projector is and returns the made tokens."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, features: Tensor) -> Tensor:
        return self.rows[None].expand(len(features), -1, -1)


@dataclass(frozen=True)
class Released:
    """What the released code computed, and the same weights as a LLaVA here."""

    outputs: dict[str, Tensor]
    conditions: dict[str, Any]
    model: VisualLM
    batch: Batch


@pytest.fixture(scope="module", params=["eager", pytest.param("sdpa", marks=pytest.mark.full)])
def released(request: pytest.FixtureRequest) -> Released:
    with safe_open(OUTPUTS, "pt") as file:
        outputs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    text = json.loads(metadata["config"])
    image = text["vocab_size"] - 1
    config = LlavaConfig(
        text_config=LlamaConfig(**text),
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            image_size=336, patch_size=14,
        ),
        image_token_index=image,
        attn_implementation=request.param,
    )  # fmt: skip
    hf = LlavaForConditionalGeneration(config).eval()
    weights = {name[2:]: tensor for name, tensor in outputs.items() if name.startswith("w.")}
    hf.lm_head.weight.data.copy_(weights.pop("lm_head.weight"))
    hf.model.language_model.load_state_dict(
        {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    )
    hf.model.multi_modal_projector = Fixed(outputs["visual"])
    ids = outputs["input_ids"]
    assert image not in ids
    ids = torch.cat([ids[:BEFORE], torch.full((VISUAL,), image), ids[BEFORE:]])[None]
    model = VisualLM(hf)
    batch = model.batch(
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.zeros(1, 3, 336, 336),
        }
    )
    markers = Markers.from_ids({"vit-sink": [VIT_SINK], "llm-sink": [LLM_SINK], "dead": [DEAD]})
    batch = batch.with_classes(markers.classify(model, batch))
    conditions = json.loads(metadata["conditions"])
    return Released(outputs, conditions, model, paper.with_ids(model, batch))


def test_every_condition_has_a_preset(released: Released) -> None:
    assert set(released.conditions) == set(PRESETS)


def test_classes_are_those_of_the_released_rule(released: Released) -> None:
    classes = released.batch.classes
    assert classes is not None
    for cluster, mask in (
        ("dead", classes.mask("dead")),
        ("sinks", classes.mask("sink")),
        ("all3", classes.mask("dead") | classes.mask("sink")),
    ):
        found = torch.from_numpy(mask.nonzero()[0])
        assert 100 < len(found) < 300
        if cluster == "dead":  # a token of both rules is a sink here, and dead there
            found = found.tolist()
            assert set(found) <= set(released.outputs["cluster.dead"].tolist())
        else:
            assert found.tolist() == released.outputs[f"cluster.{cluster}"].tolist()


@pytest.mark.parametrize(
    ("name", "plan"),
    [*PRESETS.items(), *PLAIN.items()],
    ids=[*(f"paper-{name}" for name in PRESETS), *(f"plain-{name}" for name in PLAIN)],
)
def test_plans_equal_the_released_code(released: Released, name: str, plan: Plan) -> None:
    expected = released.outputs[f"{name}.logits"]
    states = released.outputs.get(f"{name}.last")
    if states is None:  # what was dropped moves the rows
        found = released.model.run(released.batch, plan).logits
        assert (found[0] - expected[-1]).abs().max() < CLOSE
        return
    layers = released.model.n_layers
    run = released.model.run(
        released.batch, plan, capture="residual", layers=[layers], tokens="all", logits="all"
    )
    assert (run.logits[0, -len(expected) :] - expected).abs().max() < CLOSE
    rows = released.outputs["rows"]
    norm = released.model.hf.model.language_model.norm
    with torch.no_grad():
        normed = norm(run.residual[layers][rows])
    assert (normed - states).abs().max() < CLOSE


def test_conditions_differ_from_one_another(released: Released) -> None:
    """What equals each of them cannot equal another."""
    lasts = {name: released.outputs[f"{name}.logits"][-1] for name in released.conditions}
    for name, last in lasts.items():
        for other, its in lasts.items():
            assert name == other or (last - its).abs().max() > 10 * CLOSE
