"""The partition finds sinks and clusters where they are planted, and none where nothing is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import Batch, InputError, Markers, Result, VisualLM, partition
from embedlens.analyses.claim import judged
from embedlens.analyses.clusters_and_sinks.macro_clusters import find_clusters
from embedlens.analyses.clusters_and_sinks.measure import MASSIVE, NORM, TURN
from embedlens.analyses.clusters_and_sinks.report_text import PARTITION
from embedlens.analyses.select_rows import one, select
from tolerances import EQUAL

LOUD, TURNING, HUGE = (2, 5), (5, 7), (9,)
IMAGES = 9


def images() -> list[Any]:
    return [[tiny.image(i)] for i in range(IMAGES)]


def of_cells(batch: Batch, cells: tuple[int, ...]) -> np.ndarray:
    number = np.arange(len(batch.visual)) % tiny.CELLS
    return np.isin(number, cells)


def planted(layer: int, part: str) -> tuple[VisualLM, Batch]:
    """A random model that is given sinks by hooks: loud features, a turn, a massive entry."""
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    batch = model.encode(images(), ["a b"] * IMAGES)
    position = batch.visual.position[batch.visual.sample == 0]
    first = int(batch.inputs["attention_mask"][0].argmax())
    direction = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))

    def loud(_: Any, args: tuple[Any, ...]) -> Any:
        features = args[0].clone()
        features[:, list(LOUD)] *= 20
        return (features, *args[1:])

    def turn(_: Any, __: Any, output: Any) -> Any:
        added = (output[0] if isinstance(output, tuple) else output).clone()
        if added.ndim == 3 and added.shape[1] == batch.length:
            added[:, [first, *position[list(TURNING)]]] += 40 * direction
        return (added, *output[1:]) if isinstance(output, tuple) else added

    def huge(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        added = output.clone()
        added[:, position[list(HUGE)], 3] += 1e5
        return added

    decoder = built.model.model.language_model
    built.model.model.multi_modal_projector.register_forward_pre_hook(loud)
    where = decoder.layers[layer]
    (where.mlp if part == "ffn" else where.self_attn.o_proj).register_forward_hook(turn)
    decoder.layers[3].mlp.register_forward_hook(huge)
    return model, batch


@pytest.fixture(scope="module")
def found() -> tuple[Result, Batch]:
    model, batch = planted(1, "ffn")
    return partition(model, batch, clusters=(2, 3)), batch


def criterion(result: Result, name: str) -> np.ndarray:
    mask: np.ndarray = result.tensors["criteria"][result.meta["criteria"].index(name)].numpy()
    return mask


def test_planted_sinks_are_found_by_their_own_mechanism(found: tuple[Result, Batch]) -> None:
    result, batch = found
    for name, cells in ((NORM, LOUD), (TURN, TURNING), (MASSIVE, HUGE)):
        assert (criterion(result, name) == of_cells(batch, cells)).all(), name
        row = one(result.frame, measure="share", name=name)
        assert row["value"] == pytest.approx(len(cells) / tiny.CELLS)
        assert row["images"] == IMAGES
    assert one(result.frame, measure="overlap", name=NORM, other=TURN)["value"] == 0.5
    assert one(result.frame, measure="overlap", name=NORM, other=MASSIVE)["value"] == 0


@pytest.mark.parametrize(("layer", "part"), [(1, "ffn"), (2, "attention")])
def test_the_sublayer_that_turns_them_is_named(
    found: tuple[Result, Batch], layer: int, part: str
) -> None:
    result = found[0] if part == "ffn" else partition(*planted(layer, part), clusters=(2,))
    turns = select(result.frame, measure="turns")
    (there,) = turns[turns["value"] > 0].to_dict("records")
    assert (there["layer"], there["part"], there["value"]) == (layer, part, 1)
    (claim,) = judged(PARTITION.claims(result))
    assert claim.verdict == ("agrees" if part == "ffn" else "differs")
    said = " ".join(PARTITION.findings(result))
    assert f"{'FFN' if part == 'ffn' else 'attention'} of layer {layer}" in said


def test_nothing_is_found_where_nothing_is(twin: Callable[..., Any]) -> None:
    model = twin().model
    result = partition(model, model.encode(images(), ["a b"] * IMAGES), clusters=(2, 3))
    assert not result.tensors["criteria"].any()
    assert select(result.frame, measure="turns").empty
    assert (select(result.frame, measure="share")["value"] == 0).all()
    (claim,) = judged(PARTITION.claims(result))
    assert claim.verdict == "undecided"
    assert "0.0 %" in PARTITION.findings(result)[0]


def test_cosines_are_those_of_the_plain_model(twin: Callable[..., Any]) -> None:
    pair = twin()
    plain, kept = copy.deepcopy(pair.plain), {}
    decoder = plain.model.language_model
    for number, layer in enumerate(decoder.layers):
        for name, module in (
            ((number, "attention"), layer.post_attention_layernorm),
            ((number - 1, "ffn"), layer.input_layernorm),
        ):
            module.register_forward_pre_hook(
                lambda _, args, name=name: kept.__setitem__(name, args[0].detach())
            )
    batch = pair.model.encode(images(), ["a b"] * IMAGES)
    with torch.no_grad():
        plain(**batch.inputs)
    result = partition(pair.model, batch, clusters=(2,))
    sample, position = batch.visual.sample, batch.visual.position
    first = batch.inputs["attention_mask"].argmax(1)
    for (layer, part), stream in kept.items():
        if layer < 0:
            continue
        own = stream[sample, position]
        expected = torch.cosine_similarity(own, stream[sample, first[sample]]).mean()
        row = one(result.frame, measure="cosine", name="others", layer=layer, part=part)
        assert row["value"] == pytest.approx(float(expected), abs=EQUAL)


def test_clusters_are_found_where_they_are_and_not_in_one_cloud() -> None:
    rng = np.random.default_rng(0)
    centres = 6 * rng.normal(size=(3, 40))
    kind = np.repeat([0, 1, 2], [300, 200, 100])
    found = find_clusters(centres[kind] + rng.normal(size=(600, 40)), (2, 3, 4, 5), seed=0)
    assert found.count == 3
    assert (found.of_token == kind).all()  # the largest first
    stretched = rng.normal(size=(600, 40)) * np.geomspace(10, 0.1, 40) + 3
    alone = find_clusters(stretched, (2, 3, 4, 5), seed=0)
    assert alone.count == 1
    assert not alone.of_token.any()


def test_cluster_rows_are_counts_of_the_clusters(found: tuple[Result, Batch]) -> None:
    result, _ = found
    cluster = result.tensors["cluster"].numpy()
    shares = select(result.frame, measure="cluster share")["value"].to_numpy()
    assert shares == pytest.approx(np.bincount(cluster) / len(cluster))
    assert len(result.meta["cluster_words"]) == len(shares)


def test_classes_and_the_papers_rule_stand_beside(twin: Callable[..., Any]) -> None:
    model = twin().model
    batch = model.encode(images(), ["a b"] * IMAGES)
    ids = {"dead": [5, 6, 7, 8]}
    markers = Markers.from_ids({"vit-sink": [9]})
    result = partition(model, batch, markers=markers, ids=ids, clusters=(2,))
    expected = Markers.from_ids(ids).classify(model, batch).mask("dead")
    assert expected.any()
    assert (criterion(result, "paper’s rule: dead") == expected).all()
    own = markers.classify(model, batch).mask("vit-sink")
    assert (criterion(result, "class vit-sink") == own).all()


def test_what_cannot_be_told_apart_is_refused(twin: Callable[..., Any]) -> None:
    model = twin().model
    batch = model.encode(tiny.image(0), "a b")
    with pytest.raises(InputError, match="2 or more"):
        partition(model, batch, clusters=(1,))
    with pytest.raises(InputError, match="too few for 40 clusters"):
        partition(model, batch, clusters=(40,))
    with pytest.raises(InputError, match="given twice"):
        partition(model, [batch, batch])
