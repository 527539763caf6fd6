"""The causal test of markers: exchanged tokens against plain transformers, and planted truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import tiny
from builders.exchanged_directions import IMAGES, PROMPT, evidence_of, images_of, model_of, scene
from builders.planted_classes import CELLS, picture
from embedlens import InputError, Markers, VisualLM
from embedlens.analyses import causal_evidence, sparsity
from embedlens.analyses.analysis import find
from embedlens.analyses.causal_evidence_of_markers.attention_received import attention_received
from embedlens.analyses.causal_evidence_of_markers.swapped_tokens import Exchange
from embedlens.analyses.claim import judged
from embedlens.analyses.report.analyze import analyze
from embedlens.lens.scenes import scenes
from tolerances import EQUAL

pytestmark = pytest.mark.full


def test_exchanging_equals_plain_transformers_on_exchanged_patches() -> None:
    """Two images hold one such token each, so who gets what is known: its patch changes place."""
    vectors = normalize(torch.randn(50, tiny.WIDTH, generator=torch.Generator().manual_seed(3)))
    model = model_of(vectors * 4, noise=0.0)
    draw = np.random.default_rng(0)
    rows = draw.integers(2, 50, (3, CELLS))
    rows[0, 5], rows[1, 40] = 0, 1
    images = [picture(row, 0) for row in rows]
    batches = [model.encode([[image] for image in images[i:j]], [PROMPT] * (j - i))
               for i, j in ((0, 2), (2, 3))]  # fmt: skip
    exchange = Exchange(model, batches, seed=0)
    masks = [(rows[i:j] < 2).reshape(-1) for i, j in ((0, 2), (2, 3))]
    assert exchange.numbers(masks) == [1, 1, 0]
    found = exchange.change(masks, [1, 1, 0])
    rows[0, 5], rows[1, 40] = 1, 0
    changed = [picture(row, 0) for row in rows[:2]]
    with torch.no_grad():
        clean, after = (
            model.hf(**model.encode([[i] for i in some], [PROMPT] * 2).inputs).logits[:, -1]
            for some in (images[:2], changed)
        )
    p, q = (torch.softmax(logits.double(), -1).numpy() for logits in (clean, after))
    expected = (p * np.log(p / q)).sum(1)
    assert expected.min() > 1e-3
    assert found[:2] == pytest.approx(expected, abs=EQUAL)
    assert np.isnan(found[2])


def test_draws_do_not_depend_on_batches() -> None:
    model, planting = scene(0, carrying=0.4)
    images = images_of(planting, range(6))
    encoded = [model.encode([[image]], [PROMPT]) for image in images]
    whole = model.encode([[image] for image in images], [PROMPT] * 6)
    masks = [(planting.truth(range(6)) == "dead").reshape(6, -1)]
    alone = Exchange(model, encoded[::-1], 0).change(list(masks[0][::-1]), [16] * 6)[::-1]
    together = Exchange(model, [whole], 0).change([masks[0].reshape(-1)], [16] * 6)
    assert alone == pytest.approx(together, abs=EQUAL)
    assert together.min() > 1e-3


def test_attention_received_equals_a_loop_over_weights() -> None:
    model, planting = scene(1, carrying=0.0)
    images = planting.images(range(2))
    batch = model.encode([[image] for image in images], ["what is this ?", "a"])
    before = model.attn_implementation
    found = attention_received(model, batch).numpy()
    assert model.attn_implementation == before == "sdpa"
    model.hf.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.hf(**batch.inputs, output_attentions=True).attentions
    model.hf.set_attn_implementation("sdpa")
    real = batch.inputs["attention_mask"].bool().numpy()
    visual = np.zeros_like(real)
    visual[batch.visual.sample, batch.visual.position] = True
    for token in range(0, len(batch.visual), 17):
        s, k = int(batch.visual.sample[token]), int(batch.visual.position[token])
        for column, queries in enumerate((real, real & ~visual)):
            per_layer = []
            for layer in weights:
                seen = [
                    float(layer[s, :, q, k].mean()) * int(real[s, : q + 1].sum())
                    for q in range(k, batch.length)
                    if queries[s, q]
                ]
                per_layer.append(np.mean(seen))
            assert found[token, column] == pytest.approx(np.mean(per_layer), abs=1e-3)


def test_what_does_not_differ_between_images_is_dead_and_what_does_is_common() -> None:
    dead, carrying = evidence_of(1, 0.0), evidence_of(1, 2.0)
    (row,) = dead.evidence.to_dict("records")
    assert (row["class"], row["verdict"], row["undecided"]) == ("dead", "no change", "")
    assert row["change"] < 0.05 * row["others_change"]
    assert row["tested_images"] == IMAGES
    assert dead.tested
    assert "causal test taken" in repr(dead)
    (row,) = carrying.evidence.to_dict("records")
    assert (row["class"], row["verdict"]) == ("common", "change")
    assert "exchanged it changes the output" in row["why"]
    assert row["attention_from_text"] > 0


@pytest.mark.full
def test_the_test_errs_in_few_of_many_models() -> None:
    dead = [evidence_of(seed, 0.0).frame["class"].tolist() for seed in range(20)]
    assert dead == [["dead"]] * 20
    carrying = [evidence_of(seed, 2.0).frame["verdict"][0] for seed in range(20)]
    assert "no change" not in carrying
    assert carrying.count("change") >= 8


def test_without_enough_images_or_any_dependence_it_is_undecided() -> None:
    model, planting = scene(2, carrying=0.0)
    images = images_of(planting, range(9))
    markers = Markers.discover(model, images)
    few = model.encode([[image] for image in images[:4]], [PROMPT] * 4)
    (row,) = causal_evidence(model, few, markers).frame.to_dict("records")
    assert (row["class"], row["verdict"]) == ("dead", "undecided")
    assert "4 images have such tokens" in row["undecided"]
    batch = model.encode([[image] for image in images], [PROMPT] * 9)
    model.hf.lm_head.weight.zero_()  # whatever is shown, every word is as likely
    deaf = causal_evidence(model, batch, markers)
    assert deaf.frame["verdict"].tolist() == ["undecided"]
    assert "do not change the output either" in deaf.undecided[0]
    result = sparsity(model, batch, markers=deaf)
    said = " ".join(find("sparsity").findings(result))
    assert "undecided" in said
    assert "would be dead" in said
    assert "are dead" not in said
    claims = find("sparsity").claims(result)
    assert all(claim.evidence is None and "undecided" in claim.here for claim in claims)


def test_evidence_stands_in_the_report() -> None:
    model, planting = scene(0, carrying=0.0)
    images = images_of(planting, range(10))
    markers = Markers.discover(model, images)
    batch = model.encode([[image] for image in images], [PROMPT] * 10)
    analysis = find("sparsity")
    untested = sparsity(model, batch, markers=markers)
    assert "the causal test was not taken" in " ".join(analysis.findings(untested))
    result = sparsity(model, batch, markers=causal_evidence(model, batch, markers))
    (row,) = markers.evidence.to_dict("records")
    said = " ".join(analysis.findings(result))
    assert "tokens of 1 of 1 dead directions do not change the output" in said
    table = analysis.table(result)
    assert table is not None
    assert table["because it recurs and"].tolist() == [row["why"]]
    assert table["exchanged between images"].tolist() == ["no change"]


@pytest.mark.parametrize("images", [3, 8])
def test_analyze_takes_the_test_from_eight_images_on(shipped: VisualLM, images: int) -> None:
    pictures = [scene.image() for scene in scenes(images, start=700)]
    (result,) = analyze(shipped, pictures, "describe the image .", analyses=["sparsity"])
    analysis = find("sparsity")
    said = " ".join(analysis.findings(result))
    verdicts = {row.get("verdict") for row in result.meta["evidence"] if row["class"] == "dead"}
    if images == 3:
        assert "3 images are too few" in said
        assert "are dead" not in said
        assert all(claim.verdict == "undecided" for claim in judged(analysis.claims(result)))
        assert verdicts == {None}
    else:
        assert "do not change the output" in said
        assert "no change" in verdicts
        assert None not in verdicts


def test_it_refuses_what_it_cannot_test() -> None:
    model, planting = scene(0, carrying=0.0)
    batch = model.encode([[image] for image in planting.images(range(2))], [PROMPT] * 2)
    with pytest.raises(InputError, match="vocabulary ids"):
        causal_evidence(model, batch, Markers.from_ids({"dead": [3]}))
    markers = Markers.discover(model, planting.images(range(2)))
    with pytest.raises(InputError, match="'asleep'"):
        causal_evidence(model, batch, markers, classes=("asleep",))
    with pytest.raises(InputError, match="given twice"):
        causal_evidence(model, [batch, batch.subset([0])], markers)
