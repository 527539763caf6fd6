"""Sink, dead, common and alive tokens planted into trained language models are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from builders.planted_classes import Planting, labels, planted_model
from embedlens import InputError, Markers, TokenClasses, VisualLM
from embedlens.lens.markers.word_of_direction import WordOfDirection
from embedlens.lens.selectors.parser import parse_selector
from embedlens.lens.tensor_file import write_tensor_file
from tolerances import EQUAL

CALIBRATION, HELD_OUT = range(12), range(100, 104)
WORDS = ("red", "circle", "background", "left")


def planted(shipped: VisualLM, classes: tuple[str, ...], cells: tuple[int, ...], seed: int = 0):
    """The shipped model's decoder with these tokens planted; the others point anywhere."""
    draw = torch.Generator().manual_seed(seed)
    table, ids = shipped.embeddings.detach(), shipped.tokenizer.get_vocab()
    norm = float(table.norm(dim=1).median())
    vectors = norm * normalize(torch.randn(3000, table.shape[1], generator=draw), dim=1)
    words = iter(WORDS)
    for row, name in enumerate(classes):
        if name == "common":
            vectors[row] = table[ids[next(words)]]
    planting = Planting(vectors, classes, cells)
    model = planted_model(
        shipped.hf.model.language_model,
        shipped.tokenizer,
        vectors,
        head=shipped.hf.lm_head.weight.detach(),
        template=shipped.processor.chat_template,
        loud=planting.loud,
    )
    return model, planting


def agreement(model: VisualLM, planting: Planting, markers: Markers) -> float:
    """Share of the tokens of unseen images that get their own class."""
    images = planting.images(HELD_OUT)
    batch = model.encode([[image] for image in images], ["what is the background ?"] * len(images))
    found = labels(markers.classify(model, batch))
    return float((found == planting.truth(HELD_OUT)).mean())


def test_planted_classes_are_told_apart_on_unseen_images(shipped: VisualLM) -> None:
    classes = ("dead", "dead", "vit-sink", "common", "common", "common")
    model, planting = planted(shipped, classes, (12, 5, 2, 3, 2, 1))
    markers = Markers.discover(model, planting.images(CALIBRATION))
    assert sorted(markers.frame["class"]) == sorted(classes)
    assert agreement(model, planting, markers) >= 0.98
    common = markers.evidence.query("`class` == 'common'")
    assert {words.split()[0] for words in common["words"]} == set(WORDS[:3])
    assert (common["word_cosine"] > 0.95).all()
    assert markers.undecided == ()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_marked_where_nothing_recurs(shipped: VisualLM, seed: int) -> None:
    model, planting = planted(shipped, (), (), seed)
    markers = Markers.discover(model, planting.images(CALIBRATION))
    assert markers.found == ()
    assert agreement(model, planting, markers) == 1


@pytest.mark.full
def test_none_of_sixty_nulls_is_marked(shipped: VisualLM) -> None:
    """So with 95 % confidence fewer than one in twenty is."""
    marked = []
    for seed in range(60):
        model, planting = planted(shipped, (), (), 100 + seed)
        marked += [seed] * bool(Markers.discover(model, planting.images(CALIBRATION)).found)
    assert not marked


def test_a_massive_activation_that_the_model_makes_is_a_sink(shipped: VisualLM) -> None:
    """Layer 2 answers one of two directions with a huge entry; at the entry nothing is massive."""
    model, planting = planted(shipped, ("dead", "dead"), (6, 6))
    direction = normalize(planting.vectors[0], dim=0)
    first, second = (model.hf.get_submodule(model.anatomy.layers[layer]) for layer in (0, 2))
    here: list[torch.Tensor] = []

    def remember(_: Any, args: Any) -> None:
        here[:] = [normalize(args[0], dim=-1) @ direction > 0.9]

    def make_massive(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output + here[0][..., None] * torch.eye(output.shape[-1])[7] * 1e5

    handles = first.register_forward_pre_hook(remember), second.register_forward_hook(make_massive)
    markers = Markers.discover(model, planting.images(CALIBRATION))
    for handle in handles:
        handle.remove()
    assert sorted(markers.frame["class"]) == ["dead", "llm-sink"]
    (sink,) = markers.evidence.query("`class` == 'llm-sink'").to_dict("records")
    assert markers.directions is not None
    assert markers.frame["class"][int((markers.directions @ direction).argmax())] == "llm-sink"
    assert "times the median" in sink["why"]
    assert sink["massive"] > 1000


def test_few_images_or_no_other_tokens_leave_classes_undecided(shipped: VisualLM) -> None:
    model, planting = planted(shipped, ("dead",), (20,))
    few = Markers.discover(model, planting.images(range(3)))
    assert "3 images are too few" in few.undecided[0]
    assert "undecided" in repr(few)
    model, planting = planted(shipped, ("dead",), (61,))
    alone = Markers.discover(model, planting.images(CALIBRATION))
    assert "95 % of all tokens" in alone.undecided[0]
    model, planting = planted(shipped, ("dead",), (64,))
    everything = Markers.discover(model, planting.images(CALIBRATION))
    assert "100 % of all tokens" in everything.undecided[0]


def test_words_lie_above_chance_and_random_directions_do_not(shipped: VisualLM) -> None:
    """Cosines by numpy; random directions are drawn with the words' covariance, anew."""
    words = WordOfDirection(shipped, seed=0)
    table = shipped.embeddings.detach().double().numpy()
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    mean = unit.mean(0) / np.linalg.norm(unit.mean(0))
    centred = unit - np.outer(unit @ mean, mean)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    draw = np.random.default_rng(1)
    drawn = draw.normal(size=(400, len(unit))) @ (unit - unit.mean(0)) + 5 * mean
    rest = drawn - np.outer(drawn @ mean, mean)
    expected = (rest / np.linalg.norm(rest, axis=1, keepdims=True) @ centred.T).max(1)
    found = words(torch.from_numpy(drawn)).double().numpy()
    assert np.abs(found - expected).max() < EQUAL
    assert (found > words.chance).mean() <= 0.05
    assert (words(shipped.embeddings.detach()) > words.chance).all()


def test_common_tokens_are_alive_and_classes_of_three_kinds_are_still_read() -> None:
    draw = np.random.default_rng(0)
    masks = {name: draw.random(60) < 0.4 for name in ("vit-sink", "llm-sink", "dead", "common")}
    classes = TokenClasses(masks)
    alive = ~(masks["vit-sink"] | masks["llm-sink"] | masks["dead"])
    assert (classes.mask("common") == (masks["common"] & alive)).all()
    assert classes.mask("common").any()
    assert (classes.mask("alive") == alive).all()
    assert set(classes.labels) == {"sink", "dead", "alive"}
    three = TokenClasses({name: masks[name] for name in ("vit-sink", "llm-sink", "dead")})
    assert not three.mask("common").any()
    assert (three.labels == classes.labels).all()


def test_common_is_a_selector_as_the_other_classes_are(shipped: VisualLM) -> None:
    model, planting = planted(shipped, ("common",), (6,))
    markers = Markers.discover(model, planting.images(CALIBRATION))
    batch = model.encode(planting.images([7])[0], "what is the background ?")
    batch = batch.with_classes(markers.classify(model, batch))
    chosen = parse_selector("common & visual").select(batch).prompt[0]
    expected = batch.visual.position[planting.truth([7]) == "common"]
    assert np.flatnonzero(chosen).tolist() == expected.tolist()


def test_a_token_belongs_to_the_nearest_of_two_directions(shipped: VisualLM) -> None:
    frame = Markers.from_ids({"dead": [1], "vit-sink": [2]}).frame
    width = shipped.anatomy.hidden_size
    directions = normalize(torch.stack([torch.ones(width), torch.arange(width) + 60.0]), dim=1)
    assert float(directions[0] @ directions[1]) > 0.9
    markers = Markers(frame, directions)
    classes = markers.classify_states(shipped, directions * 3)
    assert labels(classes).tolist() == ["dead", "vit-sink"]
    assert markers.direction_of(torch.randn(4, width)).tolist() == [-1] * 4


def test_markers_saved_before_there_was_evidence_are_read(
    shipped: VisualLM, tmp_path: Path
) -> None:
    model, planting = planted(shipped, ("dead", "common"), (9, 4))
    markers = Markers.discover(model, planting.images(CALIBRATION))
    markers.save(tmp_path / "new")
    again = Markers.load(tmp_path / "new")
    assert again.evidence.equals(markers.evidence)
    assert (again.images, repr(again)) == (12, repr(markers))
    record = {
        "columns": ["class", "image_share"], "types": ["str", "float64"],
        "rows": [["dead", 1.0], ["dead", 1.0]], "threshold": 0.9, "ids": {}, "k": 3,
        "model": "old",
    }  # fmt: skip
    write_tensor_file(
        tmp_path / "old",
        "embedlens.markers",
        record,
        {"directions": markers.directions},
        overwrite=False,
    )
    old = Markers.load(tmp_path / "old")
    assert (old.found, old.images, old.undecided, old.tested) == (("dead",), 0, (), False)
    batch = model.encode(planting.images([50])[0], "what is the background ?")
    assert old.classify(model, batch).mask("dead").sum() == 13
    with pytest.raises(InputError, match="no class"):
        old.classify(model, batch).mask("asleep")
