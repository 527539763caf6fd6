"""Patching equals hooks; everything brings the donor's answer, and what is the same brings none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import InputError, VisualLM, patching
from embedlens.analyses import find
from embedlens.analyses.select_rows import one, select
from oracles.torch_hooks import attached, entered, entering, leaving
from tolerances import LARGE

SETS = {"image": "visual", "all": "visual | text", "last": "last", "rows": "box[0:2, 0:4]"}
N, PROMPT = 8, "what is this ?"


@pytest.fixture(scope="module")
def pair(twin: Any) -> tuple[VisualLM, Any, Any]:
    model = twin().model
    batch, donor = (
        model.encode([tiny.image(i + more) for i in range(N)], [PROMPT] * N) for more in (0, 50)
    )
    return model, batch, donor


def apart(logits: torch.Tensor, theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(N)
    return (logits[rows, theirs] - logits[rows, ours]).double()


@pytest.mark.parametrize("site", ["residual", "ffn"])
def test_what_moves_equals_plain_hooks(twin: Any, pair: Any, site: Any) -> None:
    model, batch, donor = pair
    plain = twin().plain
    targets, against = [7] * N, [20] * N
    result = patching(
        model, batch, donor, tokens=SETS, site=site, layers=[1, 2], targets=targets, against=against
    )
    visual = batch.inputs["input_ids"] == tiny.IMAGE_ID
    theirs, ours = torch.tensor(targets), torch.tensor(against)
    layers = plain.model.language_model.layers
    for i, layer in enumerate((1, 2)):
        module = layers[layer] if site == "residual" else layers[layer].mlp
        kept: list[torch.Tensor] = []

        def read(_: Any, args: Any, kwargs: Any, out: Any = None, kept: Any = kept) -> None:
            kept.append(entered(args, kwargs) if site == "residual" else out)

        def put(states: torch.Tensor, kept: Any = kept) -> torch.Tensor:
            return torch.where(visual[..., None], kept[0], states)

        if site == "residual":
            reading = module.register_forward_pre_hook(read, with_kwargs=True)
        else:
            reading = module.register_forward_hook(read, with_kwargs=True)
        with torch.no_grad():
            with attached([reading]):
                reached = plain(**donor.inputs).logits[:, -1]
            own = plain(**batch.inputs).logits[:, -1]
            if site == "residual":
                writing = module.register_forward_pre_hook(entering(put), with_kwargs=True)
            else:
                writing = module.register_forward_hook(leaving(put))
            with attached([writing]):
                patched = plain(**batch.inputs).logits[:, -1]
        base = apart(own, theirs, ours)
        moved = apart(patched, theirs, ours) - base
        assert torch.allclose(result.tensors["moved"][i, 0], moved, atol=LARGE)
        whole = apart(reached, theirs, ours) - base
        assert torch.allclose(result.tensors["apart"], whole, atol=LARGE)
        row = one(result.frame, layer=layer, tokens="image")
        assert row["effect"] == pytest.approx(float(moved.sum() / whole.sum()), abs=LARGE)


def test_all_of_a_run_brings_its_answer_and_what_is_alike_brings_nothing(pair: Any) -> None:
    model, batch, donor = pair
    frame = patching(model, batch, donor, tokens=SETS).frame
    assert sorted(frame["layer"].unique()) == list(range(tiny.LAYERS + 1))
    assert np.allclose(select(frame, tokens="all")["effect"], 1, atol=LARGE)
    last = select(frame, tokens="last").set_index("layer")["effect"]
    # The prompts are the same, and behind the last layer nothing else is read.
    assert last[0] == pytest.approx(0, abs=LARGE)
    assert last[tiny.LAYERS] == pytest.approx(1, abs=LARGE)
    image = select(frame, tokens="image").set_index("layer")["effect"]
    assert image[0] == pytest.approx(1, abs=LARGE)
    assert image[tiny.LAYERS] == pytest.approx(0, abs=LARGE)
    assert (frame["images"] == frame["samples"]).all()


def test_answers_are_those_of_the_runs_where_none_are_given(pair: Any) -> None:
    model, batch, donor = pair
    result = patching(model, batch, donor, layers=[0])
    for name, given in (("targets", donor), ("against", batch)):
        said = model.run(given).logits.argmax(-1).tolist()
        assert result.meta[name] == [model.tokenizer.decode([i]).strip() for i in said]


def test_refusals_say_what_is_wrong(pair: Any) -> None:
    model, batch, donor = pair
    with pytest.raises(InputError, match="8 samples and 2 donors"):
        patching(model, batch, donor.subset(range(2)))
    with pytest.raises(InputError, match="the same answers"):
        patching(model, batch, batch)


def test_findings_name_the_best_layer_of_each_set(pair: Any) -> None:
    model, batch, donor = pair
    result = patching(model, batch, donor, tokens={"last": "last"})
    said, *_ = find("patching").findings(result)
    best = result.frame.loc[result.frame["effect"].idxmax()]
    assert f"last {best['effect']:.2f}" in said
    assert f"at layer {best['layer']}" in said
