"""Markers: what is planted is found, nothing is found where nothing is, ground truth agrees."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from embedlens import InputError, Markers, TokenClasses, VisualLM
from embedlens.lens.markers import discovery
from embedlens.lens.markers.discovery import (
    CANDIDATES,
    draw_candidates,
    find_recurring,
    measure_tokens,
)
from embedlens.lens.scenes import scenes
from tolerances import EQUAL, LARGE

BOS = tiny.VOCABULARY.index("<s>")
# Cells of the 4 x 4 grid, in every image.
VIT_SINK, LLM_SINK, DEAD = (0, 5), (10,), (12, 13, 14, 15)
PLANTED = {"vit-sink": VIT_SINK, "llm-sink": LLM_SINK, "dead": DEAD}
IMAGES = [tiny.image(seed) for seed in range(12)]


class Projector(nn.Module):
    """A projector whose rows point anywhere, except in the planted cells.

    Ordinary rows take a random direction that depends on what the tower saw there, so that no
    two of them agree; rows of a planted cell are one vector, whatever the image.
    """

    def __init__(self, planted: dict[int, Tensor]) -> None:
        super().__init__()
        self.planted = planted

    def forward(self, features: Tensor) -> Tensor:
        rows = torch.empty(*features.shape[:2], tiny.WIDTH)
        for image in range(features.shape[0]):
            for cell in range(features.shape[1]):
                seen = int(features[image, cell].double().abs().sum() * 1e6) % 2**31
                draw = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(seen))
                rows[image, cell] = self.planted.get(cell, draw)
        return rows


def planted(*classes: str) -> VisualLM:
    """A random model in which exactly these classes exist."""
    built = tiny.build()
    model = built.model
    draw = torch.Generator().manual_seed(7)
    directions = {
        name: 5.0 * torch.randn(tiny.WIDTH, generator=draw) for name in ("vit-sink", "dead")
    }
    with torch.no_grad():
        # So large that no layer turns it: then whatever enters like BOS stays like BOS.
        model.get_input_embeddings().weight[BOS] *= 60
        directions["llm-sink"] = 0.9 * model.get_input_embeddings().weight[BOS]
    rows = {cell: directions[name] for name in classes for cell in PLANTED[name]}
    model.model.multi_modal_projector = Projector(rows)
    if "vit-sink" in classes:
        layer = model.model.vision_tower.encoder.layers[2]

        class Loud(type(layer)):  # type: ignore[misc]
            """The tower's layer whose output is read; registers stand out in norm."""

            def forward(self, *args: Any, **kwargs: Any) -> Tensor:
                states = super().forward(*args, **kwargs).clone()
                states[:, [cell + 1 for cell in VIT_SINK]] *= 12
                return states

        layer.__class__ = Loud
    return VisualLM(model, built.processor)


@pytest.mark.parametrize(
    "classes",
    [(), ("dead",), ("vit-sink",), ("llm-sink",), ("vit-sink", "dead"), tuple(PLANTED)],
    ids=lambda classes: "+".join(classes) or "nothing",
)
def test_discovery_finds_what_was_planted_and_nothing_else(classes: tuple[str, ...]) -> None:
    model = planted(*classes)
    markers = Markers.discover(model, IMAGES)
    assert set(markers.found) == set(classes)
    assert len(markers.frame) == len(classes)
    fresh = [tiny.image(seed) for seed in range(100, 106)]
    batch = model.encode([[image] for image in fresh], [tiny.PROMPTS["middle"]] * len(fresh))
    found = markers.classify(model, batch)
    cell = batch.visual.row * tiny.SIDE + batch.visual.col
    for name, cells in PLANTED.items():
        expected = np.isin(cell, cells) if name in classes else np.zeros(len(cell), bool)
        assert (found.mask(name) == expected).all(), name
    taken = [c for name in classes for c in PLANTED[name]]
    assert (found.mask("alive") == ~np.isin(cell, taken)).all()


def test_the_evidence_is_what_was_planted() -> None:
    model = planted(*PLANTED)
    frame = Markers.discover(model, IMAGES).frame.set_index("class")
    assert (frame["image_share"] == 1.0).all()
    for name, cells in PLANTED.items():
        assert frame.loc[name, "token_share"] == pytest.approx(len(cells) / tiny.CELLS)
        assert frame.loc[name, "cross_image_cosine"] == pytest.approx(1.0, abs=LARGE)
    assert frame.loc["vit-sink", "vit_norm_ratio"] > 5
    assert frame.loc["dead", "vit_norm_ratio"] < 2
    assert frame.loc["llm-sink", "first_token_cosine"] > 0.9
    assert abs(frame.loc["dead", "first_token_cosine"]) < 0.8
    assert "<s>" in frame.loc["llm-sink", "words"].split()[0]


def test_discovery_is_repeatable_and_leaves_no_hooks() -> None:
    model = planted("dead")
    model.run(model.encode(IMAGES[0], "a <image> b"))
    count = sum(len(module._forward_hooks) for module in model.hf.modules())
    first, second = (Markers.discover(model, IMAGES, seed=3) for _ in range(2))
    assert first.frame.equals(second.frame)
    assert torch.equal(first.directions, second.directions)
    assert sum(len(module._forward_hooks) for module in model.hf.modules()) == count


def test_batching_the_calibration_images_changes_nothing() -> None:
    model = planted(*PLANTED)
    together, alone = (Markers.discover(model, IMAGES, batch_size=n) for n in (12, 1))
    assert together.frame["class"].tolist() == alone.frame["class"].tolist()
    torch.testing.assert_close(together.directions, alone.directions, atol=EQUAL, rtol=0)


def test_candidates_are_drawn_by_what_an_image_shows() -> None:
    """Whatever its place, an image's tokens are drawn alike; another seed draws others."""
    contents = [3, 2**100, 71, 5]
    image = np.repeat(np.arange(4), 1000)
    places = np.arange(4000).reshape(4, 1000)

    def drawn(order: list[int], seed: int = 0) -> set[int]:
        picked = draw_candidates(image, [contents[i] for i in order], seed)
        assert len(picked) == CANDIDATES
        assert (np.diff(picked) > 0).all()
        return set(places[order].ravel()[picked].tolist())

    assert drawn([0, 1, 2, 3]) == drawn([2, 0, 3, 1])
    other = drawn([0, 1, 2, 3], seed=1)
    assert len(other & drawn([0, 1, 2, 3])) == pytest.approx(CANDIDATES**2 / 4000, rel=0.1)


def test_directions_stand_by_their_share_of_the_tokens() -> None:
    frame = Markers.discover(planted(*PLANTED), IMAGES[::-1]).frame
    assert frame["class"].tolist() == ["dead", "vit-sink", "llm-sink"]
    assert frame["token_share"].is_monotonic_decreasing


@pytest.mark.full
def test_neither_the_order_of_the_images_nor_their_batches_matter(
    shipped: VisualLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit in any order, up to rounding in any batches; a part of the tokens is tried."""
    monkeypatch.setattr(discovery, "CANDIDATES", 200)
    images = [scene.image() for scene in scenes(16, start=5000)]
    judged = [scene.image() for scene in scenes(20)]
    batch = shipped.encode([[image] for image in judged], [shipped.image_placeholder] * 20)
    orders = [np.arange(16), np.arange(16)[::-1], np.random.default_rng(1).permutation(16)]
    found = {
        size: [
            Markers.discover(shipped, [images[i] for i in order], batch_size=size)
            for order in orders
        ]
        for size in (1, 5, 16)
    }
    first = found[16][0]
    assert len(first.frame) >= 2
    labels = first.classify(shipped, batch).membership
    for one, *others in found.values():
        for other in others:
            assert torch.equal(other.directions, one.directions)
            assert other.frame.equals(one.frame)
        torch.testing.assert_close(one.directions, first.directions, atol=LARGE, rtol=0)
        exact = ["class", "undecided", "words", "chance_cosine", "image_share", "token_share"]
        assert one.frame[exact].equals(first.frame[exact])
        numbers = [frame.select_dtypes("number") for frame in (one.frame, first.frame)]
        np.testing.assert_allclose(*numbers, atol=LARGE, rtol=LARGE)
        told = one.classify(shipped, batch).membership
        assert all((told[name] == labels[name]).all() for name in labels)


@pytest.mark.full
def test_rounding_flips_no_direction(shipped: VisualLM) -> None:
    """States that differ by what another batch size makes of them, and more."""
    images = [scene.image() for scene in scenes(16, start=5000)]
    measured = measure_tokens(shipped, images, None, 16)
    tried = draw_candidates(measured.image, range(16), 0)

    def found(entry: Tensor) -> list[tuple[Tensor, np.ndarray]]:
        return find_recurring(entry, measured.image, 0.9, 0.5, 0.1, tried)

    groups = found(measured.entry)
    assert len(groups) >= 2
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        noise = torch.randn(measured.entry.shape, generator=draw)
        again = found(measured.entry + 1e-6 * measured.entry.abs().mean() * noise)
        for (one, members), (other, same) in zip(groups, again, strict=True):
            torch.testing.assert_close(other, one, atol=EQUAL, rtol=0)
            assert (members == same).all()


@pytest.mark.parametrize("classes", [(), tuple(PLANTED)], ids=["nothing", "all"])
def test_saved_markers_classify_alike(tmp_path: Path, classes: tuple[str, ...]) -> None:
    model = planted(*classes)
    markers = Markers.discover(model, IMAGES)
    markers.save(tmp_path / "markers.safetensors")
    loaded = Markers.load(tmp_path / "markers.safetensors")
    assert loaded.found == markers.found
    assert loaded.frame["class"].tolist() == markers.frame["class"].tolist()
    batch = model.encode(IMAGES[3], "a <image> b")
    before, after = markers.classify(model, batch), loaded.classify(model, batch)
    assert (before.labels == after.labels).all()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_papers_rule_is_an_id_among_the_k_nearest_words(twin: Any, k: int) -> None:
    model = twin().model
    batch = model.encode([tiny.image(0), tiny.image(1)], ["a <image> b", "what is <image>"])
    entry = model.entry(batch).double()
    embeddings = model.embeddings.detach().double()
    cosine = (entry @ embeddings.T) / entry.norm(dim=1, keepdim=True) / embeddings.norm(dim=1)
    nearest = cosine.argsort(dim=1, descending=True)[:, :k]
    common = nearest.flatten().bincount().argsort(descending=True)
    ids = {"vit-sink": [int(common[0])], "llm-sink": [], "dead": [int(common[1]), int(common[2])]}
    found = Markers.from_ids(ids, k=k).classify(model, batch)
    for name, wanted in ids.items():
        expected = torch.isin(nearest, torch.tensor(wanted)).any(1).numpy()
        assert (found.mask(name) == expected).all(), name
    assert found.mask("vit-sink").any()
    assert found.mask("dead").any()


def test_saved_ids_are_the_same_rule(twin: Any, tmp_path: Path) -> None:
    model = twin().model
    markers = Markers.from_ids({"dead": [9, 30], "vit-sink": [12]}, k=5)
    markers.save(tmp_path / "ids.safetensors")
    loaded = Markers.load(tmp_path / "ids.safetensors")
    batch = model.encode(tiny.image(0), "a <image> b")
    assert loaded.k == 5
    assert (loaded.classify(model, batch).labels == markers.classify(model, batch).labels).all()


def test_labels_resolve_overlaps_and_shares_add_up() -> None:
    rng = np.random.default_rng(0)
    masks = {name: rng.random(50) < 0.4 for name in ("vit-sink", "llm-sink", "dead")}
    classes = TokenClasses(copy.deepcopy(masks))
    sink = masks["vit-sink"] | masks["llm-sink"]
    expected = [
        "sink" if s else "dead" if d else "alive" for s, d in zip(sink, masks["dead"], strict=True)
    ]
    assert classes.labels.tolist() == expected
    assert (classes.mask("sink") == sink).all()
    assert (classes.mask("alive") == ~(sink | masks["dead"])).all()
    assert sum(classes.shares().values()) == pytest.approx(1.0)
    assert classes.shares()["sink"] == pytest.approx(sink.mean())


def test_ground_truth_agrees_on_held_out_scenes(shipped: VisualLM) -> None:
    """Discovered on images alone; judged by where the objects are.

    With the weights at the time of writing 98 % of the background cells and no object cell carry
    a recurring direction; the bounds leave room for other weights.
    """
    calibration = [scene.image() for scene in scenes(16, start=5000)]
    markers = Markers.discover(shipped, calibration)
    judged = scenes(40)
    batch = shipped.encode(
        [[scene.image()] for scene in judged], [shipped.image_placeholder] * len(judged)
    )
    marked = ~markers.classify(shipped, batch).mask("alive")
    truth = np.concatenate([scene.labels().reshape(-1) for scene in judged])
    assert marked[truth == -1].mean() > 0.75
    assert marked[truth >= 0].mean() < 0.1


def test_an_image_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """All of it would recur, and all of its tokens would be called dead."""
    model = planted("dead")
    IMAGES[0].save(tmp_path / "again.png")
    for again in (IMAGES[0].copy(), tmp_path / "again.png"):
        with pytest.raises(InputError, match="the same image is given twice"):
            Markers.discover(model, [IMAGES[0], IMAGES[1], again])


def test_one_name_is_no_list_of_images(twin: Any) -> None:
    with pytest.raises(InputError, match=r"images is a list of images, not the name 'scene\.png'"):
        Markers.discover(twin().model, "scene.png")
