"""Probes find a planted direction at its layer, and nothing in labels that mean nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import tiny
from builders.results import probes as chosen_probes
from embedlens import AddDirection, Batch, InputError, Plan, TokenClasses, VisualLM, probes
from embedlens.analyses import find
from embedlens.analyses.probes_by_layer.linear_probe import control_labels, held_out_hits
from embedlens.analyses.probes_by_layer.measure import probe_table
from embedlens.analyses.select_rows import one

IMAGES, PLANTED = 10, 2


@pytest.fixture(scope="module")
def model(twin: Any) -> VisualLM:
    return twin().model


@pytest.fixture(scope="module")
def batches(model: VisualLM) -> list[Batch]:
    """Half of each image's tokens, drawn at random, are called dead."""
    made = []
    for start in (0, 5):
        images = [tiny.image(i) for i in range(start, start + 5)]
        batch = model.encode(images, ["what is this ?"] * 5)
        dead = np.concatenate(
            [np.random.default_rng(start + i).permutation(tiny.CELLS) < 8 for i in range(5)]
        )
        none = np.zeros(len(dead), bool)
        classes = TokenClasses({"vit-sink": none, "llm-sink": none, "dead": dead})
        made.append(batch.with_classes(classes))
    return made


def dead(batches: list[Batch]) -> list[str]:
    masks = np.concatenate([batch.classes.mask("dead") for batch in batches])  # type: ignore[union-attr]
    return ["dead" if mask else "other" for mask in masks]


def test_a_planted_direction_is_found_from_its_layer_on(
    model: VisualLM, batches: list[Batch]
) -> None:
    vector = torch.zeros(tiny.WIDTH)
    vector[3] = 40.0
    plan = Plan(AddDirection(vector="v", layers=PLANTED, tokens="dead")).given(v=vector)
    found = probes(model, batches, dead(batches), plan).frame
    assert found["layer"].tolist() == list(range(tiny.LAYERS + 1))
    assert (found["chance"] == 0.5).all()
    assert (found["images"] == IMAGES).all()
    for layer in range(tiny.LAYERS + 1):
        row = one(found, layer=layer)
        if layer < PLANTED:
            assert row["selectivity_low"] < 0 < row["selectivity_high"]
        else:
            assert row["accuracy"] > 0.95
            assert row["control_high"] < 0.75
            assert row["p_holm"] < 0.05


def test_random_labels_are_named_as_often_as_chance_has_it(
    model: VisualLM, batches: list[Batch]
) -> None:
    frame = probes(model, batches, dead(batches), layers=[0, 3], controls=2).frame
    assert frame["layer"].tolist() == [0, 3]
    assert (frame["accuracy_low"] < 0.5).all()
    assert (frame["accuracy_high"] > 0.5).all()
    assert (frame["p_holm"] > 0.05).all()


def test_images_that_were_seen_are_no_help() -> None:
    """Tokens of an image are alike and share a label that is drawn for the image."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(40), 6)
    states = rng.normal(size=(40, 50))[images] + rng.normal(size=(240, 50)) * 0.01
    labels = rng.integers(0, 2, 40)[images]
    right = held_out_hits(states, labels, images, 5, 0)
    assert set(right) == {0.0, 1.0}
    assert abs(right.mean() - 0.5) < 0.2
    assert held_out_hits(states, (states[:, 0] > 0).astype(int), images, 5, 0).mean() > 0.7


def test_controls_keep_what_every_image_holds() -> None:
    images = np.repeat(np.arange(5), 8)
    labels = np.random.default_rng(0).integers(0, 3, 40)
    made = control_labels(labels, images, 0)
    assert (made != labels).any()
    for image in range(5):
        assert sorted(made[images == image]) == sorted(labels[images == image])
    assert (made != control_labels(labels, images, 1)).any()
    alike = np.arange(5)[images] % 2
    of_images = control_labels(alike, images, 3)
    assert (of_images != alike).any()
    assert all(len(set(of_images[images == image])) == 1 for image in range(5))
    assert np.bincount(of_images).tolist() == np.bincount(alike).tolist()


@pytest.mark.full
def test_of_studies_of_nothing_one_in_twenty_claims_anything() -> None:
    """States and labels have nothing to do with each other; three layers are told together."""
    claimed, n, images = 0, 60, np.repeat(np.arange(12), 6)
    for seed in range(n):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 72)
        order = control_labels(labels, images, seed)
        right, control = np.zeros((3, 72)), np.zeros((3, 72))
        for layer in range(3):
            states = rng.normal(size=(12, 8))[images] + rng.normal(size=(72, 8))
            right[layer] = held_out_hits(states, labels, images, 4, 0)
            control[layer] = held_out_hits(states, order, images, 4, 0)
        frame = probe_table(range(3), right, control, labels, images, seed)
        claimed += bool((frame["p_holm"] <= 0.05).any())
    assert binomtest(claimed, n, 0.05, alternative="greater").pvalue > 0.01, claimed


def test_labels_that_are_none_leave_their_tokens_out(model: VisualLM, batches: list[Batch]) -> None:
    labels: list[str | None] = list(dead(batches))
    labels[::2] = [None] * len(labels[::2])
    result = probes(model, batches, labels, layers=[1])
    assert one(result.frame, layer=1)["tokens"] == len(labels) // 2
    assert result.tensors["right"].shape == (1, len(labels) // 2)
    assert result.meta["images"] == IMAGES


def test_refusals_say_what_is_wrong(model: VisualLM, batches: list[Batch]) -> None:
    labels = dead(batches)
    with pytest.raises(InputError, match="159 labels for 160 tokens of 'visual'"):
        probes(model, batches, labels[1:])
    with pytest.raises(InputError, match="the same label"):
        probes(model, batches, ["a"] * len(labels))
    with pytest.raises(InputError, match="folds=11: from 2 to the number of images, 10"):
        probes(model, batches, labels, folds=11)


def test_findings_say_the_numbers_of_the_table() -> None:
    said = find("probes").findings(chosen_probes())
    best = one(chosen_probes().frame, layer=3)
    assert f"{100 * best['accuracy']:.1f} % of tokens of unseen images at layer 3" in said[0]
    assert f"+{100 * best['selectivity']:.1f} points" in said[0]
    assert said[1].startswith("More than the control at layer 2 and 3 of 4 layers")
    assert "At none of 4 layers" in find("probes").findings(chosen_probes(effect=0.0))[1]
