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
from embedlens.analyses.lens_hits_by_layer.measure import _first_hits
from embedlens.analyses.one_image import image_groups
from embedlens.analyses.select_rows import one, select
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
            assert np.isnan([row["low"], row["high"]]).all()  # of three images


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
    words = np.array([["a", "b", "c"], ["c", "a", "b"]])
    kinds = [frozenset("b"), frozenset("zc"), frozenset("zy")]
    assert _first_hits(words, kinds).tolist() == [[1, 2, 3], [2, 0, 3]]


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
    kept = words[:5] + words[6:]
    chance = np.mean([w == v for i, w in enumerate(kept) for j, v in enumerate(kept) if i != j])
    assert permuted["value"] == pytest.approx(chance)
    assert (select(frame, k=3)["value"].to_numpy() >= select(frame, k=1)["value"].to_numpy()).all()


def test_no_token_is_its_own_control(model: VisualLM, batch: Batch) -> None:
    """Of tokens with different words, each read rightly, none has the word of another."""
    words = list(token_map(model, batch, k=1).frame["word_1"])
    first = [words.index(word) for word in dict.fromkeys(words)][:4]
    truth = [[words[i]] if i in first else None for i in range(len(words))]
    frame = select(lens_hits(model, batch, truth, ks=(1,)).frame, lens="EmbedLens", layer=0)
    assert one(frame, truth="own")["value"] == 1.0
    assert one(frame, truth="permuted")["value"] == 0.0
    alone = [[words[0]] if i < 5 else None for i in range(len(words))]
    with pytest.raises(InputError, match="no other truth"):
        lens_hits(model, batch, alone)


def test_an_image_counts_once_however_often_it_is_shown(model: VisualLM) -> None:
    one_image, other = tiny.image(0), tiny.image(1)
    prompts = [tiny.PROMPTS["middle"]] * 4
    batch = model.encode([one_image, other, one_image, one_image.copy()], prompts)
    n = len(batch.visual)
    truth = [[f"word {i % 3}"] for i in range(n)]
    assert set(lens_hits(model, batch, truth, ks=(1,)).frame["images"]) == {2}
    nothing = np.zeros(n, dtype=bool)
    classes = TokenClasses({"vit-sink": nothing, "llm-sink": nothing, "dead": nothing})
    classified = batch.with_classes(classes)
    assert class_agreement(model, classified, ["object"] * n).meta["images"] == 2
    with pytest.raises(InputError, match="given twice"):
        sparsity(model, classified)


def test_observations_about_a_common_image_belong_together() -> None:
    groups = image_groups([(1,), (2, 3), (4,), (3, 4), (1,), (5,), (6, 5)]).tolist()
    assert groups[0] == groups[4]
    assert groups[1] == groups[2] == groups[3]
    assert groups[5] == groups[6]
    assert len(set(groups)) == 3


def test_a_token_map_says_which_tokens_have_a_right_word(model: VisualLM, batch: Batch) -> None:
    words = token_map(model, batch, k=3).frame
    truth: list[Any] = [[w] for w in words["word_3"]]
    truth[1], truth[2] = ["nothing of the kind"], None
    hit = token_map(model, batch, k=3, truth=truth).frame["hit"]
    assert hit.isna().tolist() == [i == 2 for i in range(len(hit))]
    assert not hit[1]
    assert hit.drop([1, 2]).all()
    assert token_map(model, batch).frame["hit"].isna().all()
    with pytest.raises(InputError, match="entries of truth"):
        token_map(model, batch, truth=truth[1:])


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
