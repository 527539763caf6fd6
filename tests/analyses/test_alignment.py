"""Alignment against a naive float64 loop, and baselines that behave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from embedlens import Batch, InputError, TokenClasses, VisualLM
from embedlens.analyses import Result, alignment
from embedlens.analyses.alignment_by_layer.nearest_text import max_cosine, text_states
from embedlens.analyses.rows import one, select
from embedlens.analyses.statistics.estimate import MIN_IMAGES
from embedlens.lens.readouts import top_k
from tolerances import EQUAL, LARGE, PREPARED

TEXTS = ["the red star is left", "a blue circle", "what is this ?", "x y z 1 2 3"]


@pytest.fixture(scope="module")
def model(twin: Callable[..., Any]) -> VisualLM:
    return twin().model


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    prompts = (["what is this ?", "a b", "c"] * MIN_IMAGES)[:MIN_IMAGES]
    encoded = model.encode([[tiny.image(i)] for i in range(MIN_IMAGES)], prompts)
    dead = np.arange(len(encoded.visual)) % 3 == 0
    nothing = np.zeros_like(dead)
    return encoded.with_classes(
        TokenClasses({"vit-sink": nothing, "llm-sink": nothing, "dead": dead})
    )


@pytest.fixture(scope="module")
def result(model: VisualLM, batch: Batch) -> Result:
    return alignment(model, batch, TEXTS)


def plain_text_states(plain: Any, layer: int) -> np.ndarray:
    """Every ordinary text token's residual stream, one sentence at a time, by a plain hook."""
    tokenizer, rows = tiny.tokenizer(), []
    layers = plain.model.language_model.layers
    for text in TEXTS:
        kept: list[torch.Tensor] = []
        if layer < tiny.LAYERS:
            handle = layers[layer].register_forward_pre_hook(
                lambda _, args, kwargs, kept=kept: kept.append(
                    args[0] if args else kwargs["hidden_states"]
                ),
                with_kwargs=True,
            )
        else:
            handle = plain.model.language_model.norm.register_forward_pre_hook(
                lambda _, args, kept=kept: kept.append(args[0])
            )
        with torch.no_grad():
            plain(**tokenizer(text, return_tensors="pt"))
        handle.remove()
        rows.append(kept[0][0, 1:].double().numpy())  # without <s>
    return np.concatenate(rows)


@pytest.mark.parametrize("layer", [0, 2, tiny.LAYERS])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("comparison", ["entry", "same layer"])
def test_cosines_equal_a_naive_loop(
    twin: Callable[..., Any],
    model: VisualLM,
    batch: Batch,
    result: Result,
    layer: int,
    centred: bool,
    comparison: str,
) -> None:
    streams = model.run(batch, capture="residual").residual
    visual = streams[0 if comparison == "entry" else layer].double().numpy()
    visual = visual[batch.classes.mask("alive")]
    text = plain_text_states(twin().plain, layer)
    if centred:
        visual, text = visual - visual.mean(0), text - text.mean(0)
    best = [max(float(v @ t / np.linalg.norm(v) / np.linalg.norm(t)) for t in text) for v in visual]
    row = one(
        result.frame,
        measure="cosine",
        comparison=comparison,
        states="visual",
        centred=centred,
        layer=layer,
    )
    assert row["value"] == pytest.approx(np.mean(best), abs=EQUAL)
    assert row["low"] <= row["value"] <= row["high"]
    tensor = result.tensors[f"cosine/{comparison}/{'centred' if centred else 'raw'}"]
    assert tensor[:, layer].numpy() == pytest.approx(best, abs=EQUAL)


def test_norms_and_the_matched_layer(
    twin: Callable[..., Any], model: VisualLM, batch: Batch, result: Result
) -> None:
    entry = model.entry(batch).double().numpy()[batch.classes.mask("alive")]
    median = np.median(np.linalg.norm(entry, axis=1))
    medians = [
        np.median(np.linalg.norm(plain_text_states(twin().plain, layer), axis=1))
        for layer in range(tiny.LAYERS + 1)
    ]
    rows = select(result.frame, measure="norm", states="text")
    assert rows["value"].to_numpy() == pytest.approx(medians, rel=LARGE)
    matched = one(result.frame, measure="norm-matched layer")["value"]
    assert matched == np.abs(np.array(medians) - median).argmin()


def test_the_peak_is_where_the_curve_is_highest(result: Result) -> None:
    for comparison in ("entry", "same layer"):
        for centred in (False, True):
            place = {"comparison": comparison, "centred": centred, "states": "visual"}
            peak = one(result.frame, measure="peak layer", **place)
            curve = select(result.frame, measure="cosine", **place)
            assert peak["value"] == curve.loc[curve["value"].idxmax(), "layer"]
            assert peak["low"] <= peak["value"] <= peak["high"]


def test_special_tokens_stay_out_of_the_bank(model: VisualLM) -> None:
    bank, text = text_states(model, [*TEXTS, ""])
    assert len(bank[0]) == sum(len(sentence.split()) for sentence in TEXTS)
    assert np.bincount(text).tolist() == [len(sentence.split()) for sentence in TEXTS]
    specials = model.embeddings[[tiny.VOCABULARY.index(word) for word in ("<s>", "<pad>")]]
    assert not (bank[0][:, None] == specials).all(-1).any()


def test_padding_does_not_move_text_states(model: VisualLM) -> None:
    together, _ = text_states(model, TEXTS)
    apart = torch.cat([text_states(model, [text])[0][tiny.LAYERS] for text in TEXTS])
    assert torch.allclose(together[tiny.LAYERS], apart, atol=LARGE)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states, bank = torch.randn(23, 8, generator=generator), torch.randn(11, 8, generator=generator)
    whole = max_cosine(states, bank)
    monkeypatch.setattr(top_k, "STATES_AT_ONCE", 5)
    monkeypatch.setattr(top_k, "WORDS_AT_ONCE", 4)
    assert torch.allclose(max_cosine(states, bank), whole, atol=PREPARED)


def test_random_vectors_are_seeded(model: VisualLM, batch: Batch, result: Result) -> None:
    def chance(of: Result) -> np.ndarray:
        return select(of.frame, measure="cosine", states="random")["value"].to_numpy()

    assert (chance(alignment(model, batch, TEXTS)) == chance(result)).all()
    assert (chance(alignment(model, batch, TEXTS, seed=1)) != chance(result)).any()


def test_visual_tokens_that_are_text_states_have_cosine_one(model: VisualLM) -> None:
    text = model.batch(
        {
            "input_ids": torch.tensor([[1, 8, 9]]),
            "attention_mask": torch.ones(1, 3, dtype=torch.long),
        }
    )
    states = model.run(text, capture="residual", tokens="all").residual[2][1:]
    assert max_cosine(states, states).numpy() == pytest.approx(1, abs=PREPARED)


def test_several_batches_are_one(model: VisualLM, batch: Batch, result: Result) -> None:
    parts = alignment(model, [batch.subset([0]), batch.subset(range(1, len(batch)))], TEXTS)
    mine = parts.frame["value"].to_numpy()
    assert mine == pytest.approx(result.frame["value"].to_numpy(), abs=LARGE)


def test_refusals_say_what_to_do(model: VisualLM, batch: Batch) -> None:
    with pytest.raises(InputError, match="no class 'living'"):
        alignment(model, batch, TEXTS, tokens="living")
    with pytest.raises(InputError, match="no visual token is 'sink'"):
        alignment(model, batch, TEXTS, tokens="sink")
    with pytest.raises(InputError, match="classified"):
        alignment(model, model.encode(tiny.image(0), "a b"), TEXTS)
    with pytest.raises(InputError, match="text bank is empty"):
        alignment(model, batch, ["", " "])
    with pytest.raises(InputError, match="special tokens only"):
        alignment(model, batch, ["<s>"])
