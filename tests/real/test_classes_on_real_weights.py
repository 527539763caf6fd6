"""Planted classes in a language model that learnt language: told apart, and nothing in nulls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from builders.planted_classes import Planting, labels, planted_model
from builders.planted_in_language import CLASSES, WORDS, planted_in_language
from embedlens import Markers, VisualLM
from embedlens.analyses import causal_evidence, sparsity
from embedlens.analyses.analysis import find

CALIBRATION, HELD_OUT = range(12), range(100, 105)
QUESTION = "describe the image ."


def found_in(model: VisualLM, planting: Planting, markers: Markers) -> np.ndarray:
    """The class of every token of unseen images."""
    images = planting.images(HELD_OUT)
    batch = model.encode([[image] for image in images], [QUESTION] * len(images))
    return labels(markers.classify(model, batch))


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_planted_classes_are_told_apart(smollm2: Any, noise: float) -> None:
    model, planting = planted_in_language(smollm2, CLASSES, noise=noise)
    markers = Markers.discover(model, planting.images(CALIBRATION))
    assert sorted(markers.frame["class"]) == sorted(CLASSES)
    agree = found_in(model, planting, markers) == planting.truth(HELD_OUT)
    assert agree.mean() >= 0.98
    why = markers.evidence.query("`class` == 'llm-sink'")["why"]
    assert why.str.contains("to the first token").all()


@pytest.mark.parametrize("alive", ["words", "anything"])
@pytest.mark.parametrize("seed", range(3))
def test_nulls_have_no_sink_and_no_dead_tokens(smollm2: Any, alive: str, seed: int) -> None:
    model, planting = planted_in_language(smollm2, (), alive, seed)
    markers = Markers.discover(model, planting.images(CALIBRATION))
    assert set(markers.found) <= {"common"}
    assert (found_in(model, planting, markers) == "alive").mean() >= 0.95


def test_the_causal_test_finds_dead_tokens_dead(smollm2: Any) -> None:
    """A sink is looked at, dead tokens are not; exchanged, they change nothing."""
    model, planting = planted_in_language(smollm2, CLASSES)
    images = planting.images(range(24))
    batches = [
        model.encode([[one] for one in images[i : i + 8]], [QUESTION] * 8) for i in (0, 8, 16)
    ]
    markers = causal_evidence(model, batches, Markers.discover(model, images), classes=("dead",))
    dead = markers.evidence.query("`class` == 'dead'")
    assert dead["verdict"].tolist() == ["no change"] * 2
    assert (dead["change"] < 0.2 * dead["others_change"]).all()
    sinks = markers.evidence.query("`class` == 'llm-sink'")
    assert sinks["attention_from_text"].min() > 3
    assert dead["attention_from_text"].max() < 1
    said = " ".join(find("sparsity").findings(sparsity(model, batches, markers=markers)))
    assert "tokens of 2 of 2 dead directions do not change the output" in said
    assert "common: alive, but on a direction that recurs" in said
    assert all(f"“{word.strip()}”" in said for word in WORDS)


def test_an_untrained_projector_is_not_said_to_make_dead_tokens(smollm2: Any) -> None:
    """All tokens share one direction, with a little of the image: there is nothing to tell."""
    language_model, _ = smollm2
    width = language_model.config.hidden_size
    draw = torch.Generator().manual_seed(0)
    shared = normalize(torch.randn(width, generator=draw), dim=0)
    table = 2 * shared + 0.3 * normalize(torch.randn(9000, width, generator=draw), dim=1)
    planting = Planting(table, (), ())
    model = planted_model(language_model.model, smollm2[1], table, noise=0.05)
    for seeds, reason in ((range(3), "3 images are too few"), (range(10), "100 % of all tokens")):
        images = planting.images(seeds)
        markers = Markers.discover(model, images)
        batch = model.encode([[image] for image in images], [QUESTION] * len(images))
        result = sparsity(model, batch, markers=markers)
        said = " ".join(find("sparsity").findings(result))
        assert "undecided" in said
        assert reason in said
        assert "are dead" not in said
        assert all(claim.verdict == "undecided" for claim in find("sparsity").claims(result))
