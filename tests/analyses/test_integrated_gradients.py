"""Shares of visual tokens sum to what they explain, and equal autograd by plain hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import roots_sh_legendre

import tiny
from builders.prompts import tiny_batch, visual_of
from embedlens import InputError, Plan, ZeroFFN, integrated_gradients
from embedlens.analyses import find
from oracles.torch_hooks import attached, entering
from tolerances import LARGE, MEASURED

IDS = torch.tensor([7, 20, 33])


def at_baseline(plain: Any, batch: Any, baseline: torch.Tensor, share: float) -> Any:
    """Log-probabilities with the visual states so far along the path, and those states."""
    visual, kept = visual_of(batch), []

    def move(states: torch.Tensor) -> torch.Tensor:
        own = states[visual].detach()
        kept.append((baseline + share * (own - baseline)).requires_grad_())
        return states.index_put(torch.nonzero(visual, as_tuple=True), kept[-1])

    hook = plain.model.language_model.layers[0].register_forward_pre_hook(
        entering(move), with_kwargs=True
    )
    with attached([hook]):
        logits = plain(**batch.inputs).logits[:, -1]
    return logits.log_softmax(-1).gather(1, IDS[:, None])[:, 0], kept[0]


@pytest.mark.parametrize("baseline", ["zero", "given"])
def test_shares_equal_a_sum_by_hooks(twin: Any, baseline: str) -> None:
    model, plain = twin().model, twin().plain
    batch = tiny_batch(model)
    start = torch.zeros(tiny.WIDTH)
    if baseline == "given":
        start = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    given: Any = "zero" if baseline == "zero" else start
    steps: list[int] = []
    result = integrated_gradients(
        model,
        batch,
        IDS.tolist(),
        baseline=given,
        steps=6,
        progress=lambda _, done, __: steps.append(done),
    )
    total = torch.zeros(int(visual_of(batch).sum()), tiny.WIDTH)
    for point, weight in zip(*roots_sh_legendre(6), strict=True):
        value, states = at_baseline(plain, batch, start, point)
        total += torch.autograd.grad(value.sum(), states)[0] * weight
    with torch.no_grad():
        (before, _), (after, whole) = (at_baseline(plain, batch, start, s) for s in (0.0, 1.0))
    shares = (total * (whole - start)).sum(-1).detach().numpy()
    size = float(np.abs(shares).max())
    assert size > 0.1
    assert np.allclose(result.frame["value"], shares, atol=MEASURED * max(1.0, size))
    assert np.allclose(result.meta["before"], before, atol=LARGE)
    assert np.allclose(result.meta["after"], after, atol=LARGE)
    assert steps == list(range(1, 7))


@pytest.mark.parametrize("of", [pytest.param("logit", marks=pytest.mark.full), "logprob"])
def test_shares_sum_to_the_difference(twin: Any, of: Any) -> None:
    """Under a plan too; and the model's weights have no gradients left on them."""
    model = twin().model
    batch, plan = tiny_batch(model), Plan(ZeroFFN(layers=1))
    result = integrated_gradients(model, batch, "red", plan, of=of, steps=16)
    summed = result.frame.groupby("sample")["value"].sum().to_numpy()
    change = np.array(result.meta["after"]) - np.array(result.meta["before"])
    assert np.allclose(summed, change, atol=MEASURED * np.abs(change).max())
    assert np.allclose(change - summed, result.meta["gaps"], atol=LARGE)
    logits = model.run(batch, plan).logits
    red = model.tokenizer("red", add_special_tokens=False).input_ids[0]
    said = logits.log_softmax(-1) if of == "logprob" else logits
    assert np.allclose(result.meta["after"], said[:, red], atol=LARGE)
    assert all(weight.grad is None for weight in model.hf.parameters())
    clean = integrated_gradients(model, batch, "red", of=of, steps=2)
    assert not np.allclose(clean.meta["after"], result.meta["after"], atol=0.01)


def test_refusals_say_what_is_wrong(twin: Any) -> None:
    model = twin().model
    batch = tiny_batch(model)
    with pytest.raises(InputError, match="steps=0"):
        integrated_gradients(model, batch, "red", steps=0)
    with pytest.raises(InputError, match=r"a state \[32\] is needed, not \[3\]"):
        integrated_gradients(model, batch, "red", baseline=torch.zeros(3))


def test_findings_say_what_the_image_adds(twin: Any) -> None:
    model = twin().model
    result = integrated_gradients(model, tiny_batch(model), "red", steps=8)
    said = find("integrated_gradients").findings(result)
    change = np.mean(np.array(result.meta["after"]) - np.array(result.meta["before"]))
    assert f"gain {change:.2f} nats".replace("-", "−") in said[0]
    assert f"within {np.abs(result.meta['gaps']).max():.3f}" in said[0]
