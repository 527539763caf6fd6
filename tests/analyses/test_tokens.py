"""Token map, sparsity, lens hits and class agreement against naive recomputation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import Batch, InputError, Markers, TokenClasses, VisualLM
from embedlens.analyses import class_agreement, lens_hits, sparsity, token_map
from embedlens.analyses.lens_hits import _first_hit
from embedlens.analyses.rows import one, select
from tolerances import EQUAL

CLASSES = ("sink", "dead", "alive")


@pytest.fixture(scope="module")
def model(twin: Callable[..., Any]) -> VisualLM:
    return twin().model


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    images = [[tiny.image(i, (48, 32))] for i in range(3)]
    encoded = model.encode(images, ["what is this ?", "where is the red star ?", "a b"])
    labels = np.random.default_rng(0).choice(["alive", "dead"], len(encoded.visual))
    nothing = np.zeros(len(labels), dtype=bool)
    return encoded.with_classes(
        TokenClasses({"vit-sink": nothing, "llm-sink": nothing, "dead": labels == "dead"})
    )


def entry(model: VisualLM, batch: Batch) -> np.ndarray:
    """What the projector puts into the sequence, read off the plain model."""
    with torch.no_grad():
        features = model.hf.get_image_features(batch.inputs["pixel_values"])
    rows = getattr(features, "pooler_output", features)
    return torch.cat([row.reshape(-1, tiny.WIDTH) for row in rows]).double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_token_map_names_the_nearest_words(model: VisualLM, batch: Batch) -> None:
    frame = token_map(model, batch, k=2).frame
    states, table = entry(model, batch), model.embeddings.detach().double().numpy()
    assert len(frame) == 3 * tiny.CELLS
    for i, state in enumerate(states):
        cosines = np.array([cosine(state, row) for row in table])
        best = np.argsort(-cosines)[:2]
        assert [frame.at[i, "word_1"], frame.at[i, "word_2"]] == [tiny.VOCABULARY[j] for j in best]
        assert frame.at[i, "cosine_1"] == pytest.approx(cosines[best[0]], abs=EQUAL)
        assert frame.at[i, "norm"] == pytest.approx(np.linalg.norm(state), rel=EQUAL)
    assert list(frame["class"]) == list(batch.classes.labels)
    assert list(frame["position"]) == list(batch.visual.position)


def test_a_token_map_of_several_batches_is_that_of_one(model: VisualLM, batch: Batch) -> None:
    whole = token_map(model, batch)
    parts = token_map(model, [batch.subset([0, 1]), batch.subset([2])])
    columns = [name for name in whole.frame if "cosine" not in name and name != "norm"]
    assert parts.frame[columns].equals(whole.frame[columns])
    assert parts.meta["image_sizes"] == whole.meta["image_sizes"]
    assert parts.tensors["image/2/0"].shape == (32, 48, 3)


def test_a_token_map_needs_images_and_a_word(model: VisualLM, batch: Batch) -> None:
    with pytest.raises(InputError, match="needs the images"):
        token_map(model, model.batch(batch.inputs))
    with pytest.raises(InputError, match="k=0"):
        token_map(model, batch, k=0)


def test_unknown_classes_are_missing_not_alive(model: VisualLM) -> None:
    plain = model.encode(tiny.image(0), "a b")
    assert token_map(model, plain).frame["class"].isna().all()


def test_sparsity_against_loops_over_all_pairs(model: VisualLM, batch: Batch) -> None:
    frame = sparsity(model, batch).frame
    states, labels, sample = entry(model, batch), batch.classes.labels, batch.visual.sample
    for name in ("dead", "alive"):
        groups = [states[(labels == name) & (sample == s)] for s in range(3)]
        counts = [len(group) for group in groups]
        expected = {
            "share": np.mean(counts) / tiny.CELLS,
            "tokens": np.mean(counts),
            "norm": np.mean([np.linalg.norm(group, axis=1).mean() for group in groups]),
            "cosine of class means": np.mean(
                [cosine(a.mean(0), b.mean(0)) for a, b in combinations(groups, 2)]
            ),
            "cosine of tokens": np.mean(
                [np.mean([cosine(t, u) for t in a for u in b]) for a, b in combinations(groups, 2)]
            ),
        }
        for measure, value in expected.items():
            row = one(frame, **{"measure": measure, "class": name})
            assert row["value"] == pytest.approx(value, abs=EQUAL), measure
            assert row["low"] <= row["value"] <= row["high"]


def test_stability_compares_neighbouring_residual_streams(model: VisualLM, batch: Batch) -> None:
    streams = model.run(batch, capture="residual").residual
    frame = sparsity(model, batch).frame
    labels, sample = batch.classes.labels, batch.visual.sample
    for layer in range(tiny.LAYERS):
        steps = torch.cosine_similarity(streams[layer], streams[layer + 1], dim=1).numpy()
        of_dead = [steps[(labels == "dead") & (sample == s)].mean() for s in range(3)]
        row = one(frame, **{"measure": "stability", "class": "dead", "layer": layer})
        assert row["value"] == pytest.approx(np.mean(of_dead), abs=EQUAL)


def test_a_class_that_is_absent_is_nan_with_no_images(model: VisualLM, batch: Batch) -> None:
    sink = select(sparsity(model, batch).frame, **{"class": "sink"})
    assert (sink["images"] == 0).all()
    assert one(sink, measure="share")["value"] == 0
    assert np.isnan(one(sink, measure="norm")["value"])


def test_shares_add_up(model: VisualLM, batch: Batch) -> None:
    shares = select(sparsity(model, batch).frame, measure="share")
    assert shares["value"].sum() == pytest.approx(1)
    assert list(shares["class"]) == list(CLASSES)


def test_sparsity_refuses_what_would_mislead(model: VisualLM, batch: Batch) -> None:
    with pytest.raises(InputError, match="not classified"):
        sparsity(model, model.encode(tiny.image(0), "a b"))
    with pytest.raises(InputError, match="given twice"):
        sparsity(model, [batch, batch.subset([0])])
    with pytest.raises(InputError, match="no visual tokens"):
        sparsity(model, [])


def test_markers_may_be_given_instead_of_classes(model: VisualLM, batch: Batch) -> None:
    markers = Markers.from_ids({"dead": [5, 6, 7, 8]}, k=3)
    by_markers = sparsity(model, batch, markers=markers)
    classified = batch.with_classes(markers.classify(model, batch))
    assert by_markers.frame.equals(sparsity(model, classified).frame)
    assert by_markers.meta["markers_found"] == ["dead"]


def test_hits_count_any_true_word_among_the_first_k() -> None:
    words = np.array([["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"]])
    targets = np.array([["b", "b"], ["z", "c"], ["z", "y"]])
    assert _first_hit(words, targets).tolist() == [1, 2, 3]


def test_lens_hits_find_planted_words_and_permuting_them_does_not(
    model: VisualLM, batch: Batch
) -> None:
    words = list(token_map(model, batch, k=1).frame["word_1"])
    truth: list[Any] = [(word, "unrelated") for word in words]
    truth[5] = None
    frame = lens_hits(model, batch, truth, ks=(1, 3)).frame
    own = one(frame, lens="EmbedLens", layer=0, k=1, truth="own")
    permuted = one(frame, lens="EmbedLens", layer=0, k=1, truth="permuted")
    assert own["value"] == 1.0
    assert own["tokens"] == len(words) - 1
    kept = np.array(words[:5] + words[6:])
    chance = np.mean([(kept == word).mean() for word in kept])
    assert permuted["value"] == pytest.approx(chance, abs=0.05)
    assert (select(frame, k=3)["value"].to_numpy() >= select(frame, k=1)["value"].to_numpy()).all()


def test_lens_hits_refuse_truth_that_does_not_fit(model: VisualLM, batch: Batch) -> None:
    with pytest.raises(InputError, match="visual tokens"):
        lens_hits(model, batch, [("a",)])
    with pytest.raises(InputError, match="nothing to hit"):
        lens_hits(model, batch, [None] * len(batch.visual))
    with pytest.raises(InputError, match="at least 1"):
        lens_hits(model, batch, [("a",)] * len(batch.visual), ks=(0,))


def test_class_agreement_counts_classes_per_content(model: VisualLM, batch: Batch) -> None:
    labels = batch.classes.labels
    shown = ["object" if i % 3 else "background" for i in range(len(labels))]
    frame = class_agreement(model, batch, shown).frame
    for name in ("object", "background"):
        here = np.array(shown) == name
        for label in CLASSES:
            row = one(frame, **{"shown": name, "class": label})
            assert row["value"] == pytest.approx((labels[here] == label).mean())
            assert row["tokens"] == here.sum()
    with pytest.raises(InputError, match="visual tokens"):
        class_agreement(model, batch, ["object"])
    with pytest.raises(InputError, match="not classified"):
        class_agreement(model, model.encode(tiny.image(0), "a b"), ["x"] * tiny.CELLS)


def test_every_result_says_where_it_comes_from(model: VisualLM, batch: Batch) -> None:
    meta = sparsity(model, batch, seed=7).meta
    assert meta["seed"] == 7
    assert meta["layers"] == tiny.LAYERS
    assert meta["dtype"] == "float32"
    assert meta["device"] == "cpu"
    assert meta["attention"] == "sdpa"
    assert {"torch", "transformers", "nnsight"} <= set(meta["packages"])
    assert meta["time"].endswith("+00:00")
