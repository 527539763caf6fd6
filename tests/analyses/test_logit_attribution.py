"""Parts of a logit equal what plain hooks give, and sum to it on every family or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from builders.prompts import tiny_batch
from embedlens import AblateAttention, InputError, Plan, Unsupported, VisualLM, logit_attribution
from embedlens.analyses import find
from embedlens.analyses.select_rows import one, select
from families.zoo import READABLE, built, visual_lm
from oracles.torch_hooks import attached, entered
from tolerances import LARGE

STREAMS = "does not sum to the stream"
BEHIND = "a norm, a gate or a plan stands behind"


@torch.no_grad()
def test_every_part_equals_plain_hooks(twin: Any) -> None:
    """In a padded batch: heads by source token, FFNs, what enters, with the norm at its value."""
    model, plain = twin().model, twin("llama", "eager").plain
    batch = tiny_batch(model)
    ids = torch.tensor([7, 20, 33])
    result = logit_attribution(model, batch, ids.tolist())
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, args, kwargs, out: kept.__setitem__(
            name, (out[0] if isinstance(out, tuple) else out).double()
        )

    language = plain.model.language_model
    handles = [
        language.norm.register_forward_pre_hook(
            lambda _, args, kwargs: kept.__setitem__("last", entered(args, kwargs).double()),
            with_kwargs=True,
        ),
        language.layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: kept.__setitem__("first", entered(args, kwargs).double()),
            with_kwargs=True,
        ),
    ]
    for i, layer in enumerate(language.layers):
        for name, module in (("ffn", layer.mlp), ("value", layer.self_attn.v_proj)):
            handles.append(module.register_forward_hook(keep(f"{name} {i}"), with_kwargs=True))
    with attached(handles):
        out = plain(**batch.inputs, output_attentions=True)
    last = kept["last"][:, -1]
    factor = (last.square().mean(-1, keepdim=True) + language.norm.variance_epsilon).rsqrt()
    u = plain.lm_head.weight[ids].double() * language.norm.weight.double() * factor
    visual = batch.inputs["input_ids"] == tiny.IMAGE_ID
    for row in range(len(batch)):
        mine = select(result.frame, sample=row)
        assert one(mine, part="embedding")["value"] == pytest.approx(
            float(kept["first"][row, -1] @ u[row]), abs=LARGE
        )
        for i, layer in enumerate(language.layers):
            assert one(mine, part="ffn", layer=i)["value"] == pytest.approx(
                float(kept[f"ffn {i}"][row, -1] @ u[row]), abs=LARGE
            )
            weights = out.attentions[i][row, :, -1].double()
            values = kept[f"value {i}"][row].view(-1, 2, 8)
            for head in range(4):
                columns = layer.self_attn.o_proj.weight[:, head * 8 : head * 8 + 8].double()
                shares = weights[head] * (values[:, head // 2] @ (columns.T @ u[row]))
                found = result.tensors["sources"][row, i, head].double()
                assert float((found - shares).abs().max()) < LARGE
                told = one(mine, part="head", layer=i, head=head)
                assert told["value"] == pytest.approx(float(shares.sum()), abs=LARGE)
                assert told["visual"] == pytest.approx(float(shares[visual[row]].sum()), abs=LARGE)
        total = float(out.logits[row, -1, ids[row]])
        assert mine["value"].sum() == pytest.approx(total, abs=LARGE)
        assert float(result.tensors["logits"][row]) == pytest.approx(total, abs=LARGE)


@pytest.mark.quick("llava", "gemma3", "granite4_vision", "qwen3_5", "blip-2")
@pytest.mark.parametrize("name", READABLE)
def test_parts_sum_to_the_logit_or_are_refused(name: str) -> None:
    model = visual_lm(name)
    batch = model.batch(built(name).inputs)
    run = model.run(batch)
    ids = run.logits.argmax(-1)  # type: ignore[union-attr]
    logits = run.logits.gather(1, ids[:, None])[:, 0].double()  # type: ignore[union-attr]
    cap = model.anatomy.logit_rule.softcap
    for by in ("sublayer", "head"):
        try:
            result = logit_attribution(model, batch, ids.tolist(), by=by)
        except Unsupported:
            continue
        said = result.tensors["logits"]
        capped = said if cap is None else cap * torch.tanh(said / cap)
        assert float((capped - logits).abs().max()) < LARGE * float(logits.abs().max())
        summed = result.frame.groupby("sample")["value"].sum().to_numpy()
        assert np.allclose(summed, said.numpy())


@pytest.mark.parametrize(
    ("name", "by", "why"), [("gemma3", "head", BEHIND), ("gemma4", "sublayer", STREAMS)]
)
def test_what_does_not_add_up_is_refused_by_name(name: str, by: Any, why: str) -> None:
    model = visual_lm(name)
    with pytest.raises(Unsupported, match=why):
        logit_attribution(model, model.batch(built(name).inputs), [5], by=by)


def test_a_plan_is_in_the_parts(twin: Any) -> None:
    model: VisualLM = twin().model
    batch, plan = tiny_batch(model), Plan(AblateAttention(layers=1, tokens="last"))
    result = logit_attribution(model, batch, [9], plan, by="sublayer")
    assert (select(result.frame, part="attention", layer=1)["value"] == 0).all()
    assert (select(result.frame, part="attention", layer=2)["value"] != 0).all()
    logits = model.run(batch, plan).logits[:, 9].double()  # type: ignore[index]
    assert torch.allclose(result.tensors["logits"], logits, atol=LARGE)
    with pytest.raises(Unsupported, match=BEHIND):
        logit_attribution(model, batch, [9], plan)


def test_a_difference_is_the_difference_of_the_parts(twin: Any) -> None:
    model: VisualLM = twin().model
    batch = tiny_batch(model)
    one_, other, both = (
        logit_attribution(model, batch, "red", against=against, by="sublayer")
        if target is None
        else logit_attribution(model, batch, target, by="sublayer")
        for target, against in (("red", None), ("blue", None), (None, "blue"))
    )
    difference = one_.frame["value"] - other.frame["value"]
    assert np.allclose(difference, both.frame["value"], atol=LARGE)
    assert both.meta["targets"] == ["red"] * 3


def test_targets_are_one_token_each(twin: Any) -> None:
    model: VisualLM = twin().model
    batch = tiny_batch(model)
    with pytest.raises(InputError, match="'red star' is 2 tokens"):
        logit_attribution(model, batch, "red star")
    with pytest.raises(InputError, match="2 targets for 3 tokens"):
        logit_attribution(model, batch, [1, 2])
    with pytest.raises(InputError, match="no id 5000"):
        logit_attribution(model, batch, [5000])


def test_findings_say_the_largest_parts(twin: Any) -> None:
    model: VisualLM = twin().model
    result = logit_attribution(model, tiny_batch(model), [9])
    said = find("logit_attribution").findings(result)
    means = result.frame.groupby(["part", "layer", "head"], dropna=False)["value"].sum() / 3
    most = max(means, key=abs)
    assert f"most is added by {_name(means, most)} ({most:.2f})".replace("-", "−") in said[0]
    heads = select(result.frame, part="head")
    total = f"{heads['visual'].sum() / 3:.2f}".replace("-", "−")
    assert f"of which {total} comes from visual tokens" in said[1]


def _name(means: Any, most: float) -> str:
    part, layer, head = means[means == most].index[0]
    return {
        "embedding": "what enters layer 0",
        "head": f"head {head} of layer {layer}",
        "ffn": f"the FFN of layer {layer}",
    }[part]
