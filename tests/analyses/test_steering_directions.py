"""Directions between two sets of samples: exact means, a probe that finds what was planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from embedlens import AddDirection, InputError, Plan, VisualLM, directions
from embedlens.lens.scenes import Scene
from tolerances import EQUAL

QUESTION = "what color is the object ?"


def hooked_states(twin: Any, batch: Any, layer: int) -> Tensor:
    """What enters a layer (or the last norm), read by a plain hook, ``[sample, token, d]``."""
    language = twin().plain.model.language_model
    module = language.layers[layer] if layer < tiny.LAYERS else language.norm
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        twin().plain(**batch.inputs)
    handle.remove()
    return kept[0].double()


@pytest.mark.parametrize("tokens", ["last", "visual"])
def test_means_equal_hooks(twin: Any, tokens: str) -> None:
    model = twin().model
    one = model.encode([tiny.image(0), tiny.image(1)], ["a red star", "what is this ?"])
    other = model.encode([tiny.image(i) for i in (2, 3, 4)], ["a b", "c", "x y z 1 2"])
    found = directions(model, one, other, tokens=tokens)
    assert found.shape == (tiny.LAYERS + 1, model.anatomy.hidden_size)
    for layer in (0, 1, tiny.LAYERS):
        sides = []
        for batch in (one, other):
            states = hooked_states(twin, batch, layer)
            image = batch.inputs["input_ids"] == model.hf.config.image_token_id
            means = [
                states[i, -1] if tokens == "last" else states[i, image[i]].mean(0)
                for i in range(len(batch))
            ]
            sides.append(torch.stack(means).mean(0))
        assert (found[layer] - (sides[0] - sides[1])).abs().max() < EQUAL


def test_a_probe_finds_the_dimension_that_tells_the_samples_apart(
    twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector is added to one side's states, beside noise that is far larger in other places."""
    model = twin().model
    d = model.anatomy.hidden_size
    batch = model.encode([tiny.image(i) for i in range(24)], ["what is this ?"] * 24)
    planted = torch.zeros(d)
    planted[5] = 3.0
    plan = Plan(AddDirection(vector="v", layers=1, tokens="last")).given(v=planted)

    positive, negative = batch.subset(range(12)), batch.subset(range(12, 24))
    run = VisualLM.run

    def moved(self: VisualLM, given: Any, **more: Any) -> Any:
        return run(self, given, plan if given is positive else None, **more)

    monkeypatch.setattr(VisualLM, "run", moved)
    found = directions(model, positive, negative, by="probe")[1]
    last = batch.inputs["attention_mask"].bool().numpy() & False
    last[:, -1] = True
    states = run(model, batch, capture="residual", layers=[1], tokens=last).residual[1]
    states[:12, 5] += 3.0
    assert int((found * states.std(0)).abs().argmax()) == 5
    assert found[5] > 0
    gap = directions(model, positive, negative)[1]
    assert float(found @ gap / found.norm()) == pytest.approx(float(found.norm()), rel=1e-3)


@pytest.mark.parametrize("by", ["means", "probe"])
def test_steering_makes_the_model_say_the_colour(shipped: VisualLM, by: Any) -> None:
    """And as long a vector in a random direction does not."""
    kinds: dict[str, list[Scene]] = {"red": [], "blue": []}
    for scene in (Scene.sample(seed, n_objects=1) for seed in range(200)):
        kinds.get(scene.objects[0].color, []).append(scene)
    batches = {
        color: shipped.encode([s.image() for s in shown[:16]], [QUESTION] * 16)
        for color, shown in kinds.items()
    }
    first = range(8)
    v = directions(shipped, batches["red"].subset(first), batches["blue"].subset(first), by=by)
    held_out = batches["blue"].subset(range(8, 16))
    noise = torch.randn(v.shape, generator=torch.Generator().manual_seed(0))
    noise *= v.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)

    def red(vector: Tensor | None) -> np.ndarray:
        plan = None
        if vector is not None:
            steer = AddDirection(vector="v", factor=1.0, layers="5-6", tokens="last")
            plan = Plan(steer).given(v=vector)
        found: np.ndarray = shipped.score(held_out, ["red"] * 8, plan).logprob.numpy()
        return found

    half = np.log(0.5)
    assert (red(None) < half).all()
    assert (red(noise) < half).all()
    assert np.median(red(v)) > half


def test_a_sample_without_such_tokens_is_named(twin: Any) -> None:
    model = twin().model
    batch = model.encode([tiny.image(0)], ["a"])
    with pytest.raises(InputError, match="sample 0 has no token"):
        directions(model, batch, batch, tokens="image[3]")
