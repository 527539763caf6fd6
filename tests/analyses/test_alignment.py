"""Alignment against a naive float64 loop, and baselines that behave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tiny
from embedlens import Batch, InputError, TokenClasses, VisualLM
from embedlens.analyses import Result, alignment
from embedlens.analyses.alignment_by_layer import directions
from embedlens.analyses.alignment_by_layer.answer import (
    Answer,
    Calibration,
    Resampled,
    answer,
    answer_rows,
    chance_p,
)
from embedlens.analyses.alignment_by_layer.curves_by_layer import RAW, text_curves, visual_curves
from embedlens.analyses.alignment_by_layer.directions import max_cosine, raw
from embedlens.analyses.alignment_by_layer.token_states import (
    MASSIVE,
    TokenStates,
    ordinary,
    text_states,
)
from embedlens.analyses.analysis import find
from embedlens.analyses.claim import judged
from embedlens.analyses.select_rows import one, select
from embedlens.analyses.statistics.estimate import MIN_IMAGES
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


def own_directions(states: np.ndarray, bank: np.ndarray, view: str) -> np.ndarray:
    """Unit vectors to compare, by plain loops and means."""
    rows, spread = [row / np.linalg.norm(row) for row in states], 1.0
    if view == "standardised":
        units = np.array([row / np.linalg.norm(row) for row in bank])
        spread = np.sqrt(((units - units.mean(0)) ** 2).mean(0))
        states = np.array(rows)
    if view != "raw":
        middle = np.mean(states, axis=0)
        rows = [(row - middle) / spread for row in states]
    return np.array([row / np.linalg.norm(row) for row in rows])


VIEWS = {"raw": ("cosine", False), "centred": ("cosine", True)}
VIEWS |= {"standardised": ("standardised cosine", None)}


@pytest.mark.parametrize("layer", [0, 2, tiny.LAYERS])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("comparison", ["entry", "same layer"])
def test_cosines_equal_a_naive_loop(
    twin: Callable[..., Any],
    model: VisualLM,
    batch: Batch,
    result: Result,
    layer: int,
    view: str,
    comparison: str,
) -> None:
    streams = model.run(batch, capture="residual").residual
    visual = streams[0 if comparison == "entry" else layer].double().numpy()
    visual = visual[batch.classes.mask("alive")]
    text = plain_text_states(twin().plain, layer)
    best = [
        max(float(v @ t) for t in own_directions(text, text, view))
        for v in own_directions(visual, text, view)
    ]
    measure, centred = VIEWS[view]
    rows = select(result.frame, measure=measure, comparison=comparison, layer=layer)
    rows = rows if centred is None else select(rows, centred=centred)
    row = one(rows, states="visual")
    assert row["value"] == pytest.approx(np.mean(best), abs=EQUAL)
    assert row["low"] <= row["value"] <= row["high"]
    tensor = result.tensors[f"cosine/{comparison}/{view}"]
    assert tensor[:, layer].numpy() == pytest.approx(best, abs=EQUAL)


def test_sets_equal_naive_loops(twin: Callable[..., Any], model: VisualLM, result: Result) -> None:
    """CKA and mutual neighbours of one image, as they enter, at layer 2."""
    (picture,) = [model.encode(tiny.image(0), "what is this ?")]
    measured = alignment(model, picture, TEXTS, tokens="visual").frame
    text = plain_text_states(twin().plain, 2)
    visual = model.entry(picture).double().numpy()
    v, t = (own_directions(side, text, "standardised") for side in (visual, text))
    both, of_v, of_t = ((a.T @ a * (b.T @ b)).sum() for a, b in ((v, t), (v, v), (t, t)))
    place = {"comparison": "entry", "states": "visual", "layer": 2}
    cka = one(measured, measure="CKA", **place)["value"]
    assert cka == pytest.approx(both / np.sqrt(of_v * of_t), abs=EQUAL)
    products = v @ t.T
    mutual = [products[:, products[i].argmax()].argmax() == i for i in range(len(v))]
    share = one(measured, measure="mutual neighbours", **place)["value"]
    assert share == pytest.approx(np.mean(mutual), abs=EQUAL)


def test_references_leave_their_own_sentences_out(
    twin: Callable[..., Any], model: VisualLM
) -> None:
    text, sentence = plain_text_states(twin().plain, 2), []
    for index, told in enumerate(TEXTS):
        sentence += [index] * len(told.split())
    units = own_directions(text, text, "raw")
    best = [
        max(float(v @ t) for t, other in zip(units, sentence, strict=True) if other != own)
        for v, own in zip(units, sentence, strict=True)
    ]
    found = text_curves(text_states(model, TEXTS), len(text), seed=0)
    assert found.reference[RAW][2, 2] == pytest.approx(np.mean(best), abs=EQUAL)


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


def test_special_tokens_stay_out_of_the_bank(model: VisualLM) -> None:
    found = text_states(model, [*TEXTS, ""])
    bank = found.states
    assert len(bank[0]) == sum(len(sentence.split()) for sentence in TEXTS)
    assert np.bincount(found.owner).tolist() == [len(sentence.split()) for sentence in TEXTS]
    specials = model.embeddings[[tiny.VOCABULARY.index(word) for word in ("<s>", "<pad>")]]
    assert not (bank[0][:, None] == specials).all(-1).any()


def test_padding_does_not_move_text_states(model: VisualLM) -> None:
    together = text_states(model, TEXTS).states
    apart = torch.cat([text_states(model, [text]).states[tiny.LAYERS] for text in TEXTS])
    assert torch.allclose(together[tiny.LAYERS], apart, atol=LARGE)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states, bank = torch.randn(23, 8, generator=generator), torch.randn(11, 8, generator=generator)
    states, bank = raw(states, bank), raw(bank, bank)
    owners = torch.arange(23) % 3, torch.arange(11) % 3
    whole, apart = max_cosine(states, bank), max_cosine(states, bank, owners)
    assert (apart < whole).any()
    monkeypatch.setattr(directions, "AT_ONCE", 4)
    assert torch.allclose(max_cosine(states, bank), whole, atol=PREPARED)
    assert torch.allclose(max_cosine(states, bank, owners), apart, atol=PREPARED)


def test_random_orders_are_seeded(model: VisualLM, batch: Batch, result: Result) -> None:
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
    units = raw(states, states)
    assert max_cosine(units, units).numpy() == pytest.approx(1, abs=PREPARED)


def test_several_batches_are_one(model: VisualLM, batch: Batch, result: Result) -> None:
    parts = alignment(model, [batch.subset([0]), batch.subset(range(1, len(batch)))], TEXTS)
    mine = parts.frame["value"].to_numpy()
    assert mine == pytest.approx(result.frame["value"].to_numpy(), abs=LARGE, nan_ok=True)


def test_the_same_image_twice_is_one(model: VisualLM, batch: Batch, result: Result) -> None:
    twice = alignment(model, [batch, batch.subset([0])], TEXTS)
    assert twice.meta["images"] == result.meta["images"] == MIN_IMAGES
    fewer = alignment(model, [batch.subset([0, 0]), batch.subset(range(MIN_IMAGES - 1))], TEXTS)
    assert fewer.meta["images"] == MIN_IMAGES - 1
    assert np.isnan(one(fewer.frame, measure="share within one layer")["low"])


def test_one_token_has_no_mean_and_no_layer(model: VisualLM, batch: Batch) -> None:
    one_token = np.arange(len(batch.visual)) == 5
    nothing = np.zeros_like(one_token)
    classes = TokenClasses({"vit-sink": one_token, "llm-sink": nothing, "dead": nothing})
    found = alignment(model, batch.with_classes(classes), TEXTS, tokens="sink")
    raw_only = select(found.frame, measure="cosine", centred=False, states="visual")
    assert raw_only["value"].notna().all()
    for rows in (
        select(found.frame, measure="cosine", centred=True, states="visual"),
        select(found.frame, measure="standardised cosine", states="visual"),
        select(found.frame, measure="CKA", states="visual"),
        select(found.frame, measure="peak layer", centred=True),
        select(found.frame, measure="nearest layer", by="standardised cosine"),
    ):
        assert len(rows)
        assert rows["value"].isna().all()
    assert answer(found.frame).kind == "unknown"
    said = " ".join([*find("alignment").findings(found), find("alignment").data(found)])
    assert "There is no layer to name" in said
    assert "nan" not in said
    assert {claim.verdict for claim in judged(find("alignment").claims(found))} == {"undecided"}


def test_sinks_never_enter_means(
    model: VisualLM, batch: Batch, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One state a hundred times as large as the others, at one layer, changes nothing at all."""
    run = VisualLM.run
    alive = np.flatnonzero(batch.classes.mask("alive"))
    kept = np.delete(np.arange(len(batch.visual)), alive[3])

    def with_a_sink(self: VisualLM, given: Batch, **asked: Any) -> Any:
        made = run(self, given, **asked)
        if len(given.visual):
            made.residual[2][alive[3]] *= 100
        else:
            made.residual[2][-1] *= 100  # the last token of the last sentence
        return made

    monkeypatch.setattr(VisualLM, "run", with_a_sink)
    found = alignment(model, batch, TEXTS)
    assert found.meta["visual_sinks"] == 1
    assert found.meta["text_tokens"] == result.meta["text_tokens"] - 1
    monkeypatch.undo()
    dead = ~batch.classes.mask("alive")
    dead[alive[3]] = True
    nothing = np.zeros_like(dead)
    without = batch.with_classes(
        TokenClasses({"vit-sink": nothing, "llm-sink": nothing, "dead": dead})
    )
    assert len(kept) == len(batch.visual) - 1
    plain = alignment(model, without, [*TEXTS[:-1], TEXTS[-1].rsplit(" ", 1)[0]])
    mine, theirs = (of.frame["value"].to_numpy() for of in (found, plain))
    assert mine == pytest.approx(theirs, abs=LARGE, nan_ok=True)


def test_massive_is_far_above_the_median_of_a_layer() -> None:
    states = torch.ones(2, 9, 4)
    states[1, 3] *= MASSIVE * 1.01
    states[1, 4] *= MASSIVE * 0.99
    found = ordinary(dict(enumerate(states)), np.ones(9, dtype=bool))
    assert np.flatnonzero(~found).tolist() == [3]


LAYERS, WIDTH, SENTENCES = 6, 24, 12


def planted_text(seed: int, spread: float = 0.3) -> TokenStates:
    """Text of a made-up model: what a token is turns a little from layer to layer."""
    rng = np.random.default_rng(99)
    words = rng.normal(size=(8, WIDTH))
    turns = [np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)) + 3 * np.eye(WIDTH))[0]]
    turns += [np.linalg.qr(np.eye(WIDTH) + 0.25 * rng.normal(size=(WIDTH, WIDTH)))[0]] * LAYERS
    rng = np.random.default_rng(seed)
    tokens = words[rng.integers(8, size=SENTENCES * 10)]
    states = {}
    for layer in range(LAYERS + 1):
        tokens = tokens @ turns[layer]
        noisy = tokens + spread * rng.normal(size=tokens.shape)
        states[layer] = torch.from_numpy(10.0**layer * noisy + 1).float()
    return TokenStates(states, np.repeat(np.arange(SENTENCES), 10), 0)


def said_of(tokens: torch.Tensor, seed: int = 0) -> Answer:
    """The answer for tokens of twelve images, against text that they are no part of."""
    bank = planted_text(0)
    visual = TokenStates(dict.fromkeys(bank.states, tokens), np.arange(len(tokens)) % 12, 0)
    rows = list(answer_rows(visual_curves(bank, visual, seed), text_curves(bank, 10, seed), seed))
    return answer(pd.DataFrame(rows))


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_the_layer_that_was_planted_is_named(layer: int) -> None:
    found = said_of(planted_text(7).states[layer])
    assert (found.kind, found.layer["value"]) == ("layer", layer)
    assert found.layer["low"] <= layer <= found.layer["high"]


@pytest.mark.full
def test_nothing_is_named_where_nothing_is() -> None:
    """Random, shuffled and mixed tokens: at most one in twenty is called a layer, or aligned."""
    counts = Counter()
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        text = torch.stack(list(planted_text(100 + seed).states.values()))
        length = text.shape[1]
        order = torch.randperm(WIDTH, generator=generator)
        of = torch.randint(LAYERS + 1, (length,), generator=generator)
        sets = {
            "random": torch.randn(length, WIDTH, generator=generator),
            "shuffled": text[int(of[0])][:, order],
            "mixed": text[of, torch.arange(length)],
        }
        for name, tokens in sets.items():
            counts[name, said_of(tokens, seed).kind] += 1
    assert counts["mixed", "layer"] <= 3
    # At 5 % fewer come out once in 250 sets of 120.
    assert counts["random", "chance"] + counts["shuffled", "chance"] >= 107
    assert counts["random", "layer"] + counts["shuffled", "layer"] <= 3


def test_the_rank_among_shuffled_curves_is_exact() -> None:
    rng = np.random.default_rng(0)
    ps = np.array([chance_p(rng.normal(size=(40, 9))) for _ in range(2000)])
    assert np.mean(ps <= 0.05) == pytest.approx(0.05, abs=0.015)
    clear = rng.normal(size=(40, 9))
    clear[0, 4] += 30
    assert chance_p(clear) == 1 / 40


def test_few_images_and_levels_beyond_the_resamples_decide_nothing() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(MIN_IMAGES, 5)) + 9 * np.eye(5)[2]
    whole = Calibration(np.eye(5), np.zeros(5))
    enough = Resampled.of(values, None)
    drawn = whole.nearest(enough.drawn)
    assert enough.interval(2.0, drawn).row(0) == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert np.isinf(enough.interval(2.0, drawn, 1 - 1e-4).low).all()
    few = Resampled.of(values[1:], None)
    assert np.isnan(few.interval(2.0, whole.nearest(few.drawn)).low).all()


def test_a_mixture_is_shared_and_dilution_is_not() -> None:
    whole = Calibration(np.eye(9) + 0.1, np.full(9, 0.3))
    pure = 0.3 + 0.2 * whole.profiles[4]
    assert whole.nearest(pure) == 4
    assert whole.share_within_one(pure) == pytest.approx(1)
    mixed = 0.3 + whole.profiles[[1, 4, 7]].mean(0)
    assert whole.share_within_one(mixed) == pytest.approx(1 / 3)


def test_text_of_one_sentence_gives_no_reference(model: VisualLM, batch: Batch) -> None:
    found = alignment(model, batch, TEXTS[:1])
    assert answer(found.frame).kind == "unknown"
    assert select(found.frame, measure="cosine", states="visual")["value"].notna().all()


def test_refusals_say_what_to_do(model: VisualLM, batch: Batch) -> None:
    with pytest.raises(InputError, match="no tokens called 'living'"):
        alignment(model, batch, TEXTS, tokens="living")
    with pytest.raises(InputError, match="no visual token is 'sink'"):
        alignment(model, batch, TEXTS, tokens="sink")
    with pytest.raises(InputError, match="need classes"):
        alignment(model, model.encode(tiny.image(0), "a b"), TEXTS)
    with pytest.raises(InputError, match="text bank is empty"):
        alignment(model, batch, ["", " "])
    with pytest.raises(InputError, match="special tokens only"):
        alignment(model, batch, ["<s>"])
