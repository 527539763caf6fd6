"""Every number that alignment and sparsity say, computed again: of drawn and of real results."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tiny
from builders.results import LAYERS, alignment, sparsity
from embedlens import Batch, TokenClasses, VisualLM
from embedlens.analyses import Result, find
from embedlens.analyses import alignment as alignment_of
from embedlens.analyses import sparsity as sparsity_of
from embedlens.analyses.claim import judged
from embedlens.analyses.report.analyze import analyze
from embedlens.lens.scenes import scenes
from oracles.numbers_in_sentences import assert_numbers, numbers_in
from oracles.told_numbers import assert_told
from oracles.told_of_alignment import assert_claims_of_alignment, outcome, said_of_alignment
from oracles.told_of_sparsity import (
    SPARSITY,
    assert_claims_of_sparsity,
    assert_table_of_sparsity,
    said_of_sparsity,
)
from tolerances import EQUAL

pytestmark = pytest.mark.full

DRAWN = [range(30), pytest.param(range(30, 300), marks=pytest.mark.full)]
PROMPT = "describe the image ."


def assert_all_told(result: Result) -> list[str]:
    """Findings, claims, the sentence about the data and the small table."""
    analysis = find(result.name)
    findings, here = analysis.findings(result), [c.here for c in analysis.claims(result)]
    of_alignment = result.name == "alignment"
    starts = said_of_alignment(result) if of_alignment else said_of_sparsity(result)
    for start, sentence in zip(starts, findings, strict=True):
        assert re.match(start, sentence), sentence
        assert_told(result, sentence)
    if of_alignment:
        assert_claims_of_alignment(result, *here)
        names = "visual_tokens images text_tokens texts visual_sinks text_sinks".split()
        assert_numbers(analysis.data(result), [result.meta[name] for name in names])
    else:
        assert_claims_of_sparsity(result, here)
        assert analysis.table is not None
        assert_table_of_sparsity(result, analysis.table(result))
    return findings


def with_interval(draw: np.random.Generator, low: float, high: float) -> list[float]:
    """A value and an interval around it, which is missing at times."""
    ends = np.sort(draw.uniform(low, high, 3))
    lost = draw.random() < 0.15
    return [ends[1], *([np.nan] * 2 if lost else [ends[0], ends[2]])]


def drawn_alignment(seed: int) -> Result:
    """Any numbers, as they may stand in a table."""
    draw = np.random.default_rng(seed)
    norms = tuple(draw.uniform(1, 90, LAYERS + 1) if draw.random() < 0.5 else [5, 9, 15, 21, 40])
    p = float(draw.choice([0.0004, 0.025, 0.05, 0.051, 0.4, np.nan], p=[0.2, 0.3, 0.2, *[0.1] * 3]))
    result = alignment(int(draw.integers(LAYERS + 1)), norms, p)
    frame, known = result.frame, ["value", "low", "high"]
    share = 1 - draw.random() ** 2 * 0.5
    ends = [np.nan] * 2 if draw.random() < 0.2 else [share - draw.uniform(0, 0.2), 1.0]
    frame.loc[frame["measure"] == "share within one layer", known] = [share, *ends]
    for i in frame.index[frame["measure"] == "nearest layer"]:
        low, value, high = np.sort(draw.integers(0, LAYERS + 1, 3)).astype(float)
        deciding = frame.loc[i, "by"] == "standardised cosine"
        lost = draw.random() < (0.05 if deciding else 0.2)
        frame.loc[i, known] = [np.nan] * 3 if lost else [value, low, high]
    same = (frame["comparison"] == "same layer") & (frame["states"] == "visual")
    for i in frame.index[same & (frame["measure"] == "standardised cosine")]:
        frame.loc[i, known] = with_interval(draw, -0.3, 0.6)
    if draw.random() < 0.1:
        frame.loc[same, known] = np.nan
    few = outcome(result) == "few"
    meta = {"images": int(draw.integers(2, 8) if few else draw.integers(8, 99))}
    for name in ("visual_tokens", "text_tokens", "texts", "visual_sinks", "text_sinks"):
        meta[name] = int(draw.integers(0, 3000))
    meta["tokens"] = str(draw.choice(["alive", "visual", "dead"]))
    return Result("alignment", frame, result.tensors, {**result.meta, **meta})


def drawn_direction(
    draw: np.random.Generator, images: int, *, undecided: bool, tested: bool
) -> dict[str, Any]:
    """A row of evidence as markers have it."""
    name = str(draw.choice(["dead", "common", "llm-sink", "vit-sink"], p=[0.5, 0.3, 0.1, 0.1]))
    shares = ("image_share", "token_share", "word_cosine", "centred_word_cosine", "chance_cosine")
    row: dict[str, Any] = {share: draw.random() for share in shares}
    row |= {"class": name, "words": " ".join(draw.choice(["7", "red", "star", "a1"], 3))}
    row |= {"vit_norm_ratio": draw.uniform(1, 9), "first_token_cosine": draw.uniform(0.8, 1)}
    row["tested_images"] = int(draw.integers(0, 8))
    row["why"] = {
        "vit-sink": f"norm before the projector {row['vit_norm_ratio']:.1f} times the median",
        "llm-sink": f"cosine {row['first_token_cosine']:.2f} to the first token, at layer 3",
    }.get(
        name,
        f"carries no word (cosine {row['centred_word_cosine']:.2f}, by chance up to "
        f"{row['chance_cosine']:.2f})",
    )
    reasons = [
        f"{images} images are too few: 8 or more are needed",
        f"{100 * row['token_share']:.0f} % of all tokens share it, which leaves too few",
        f"the causal test does not tell: {row['tested_images']} images have such tokens and as "
        "many others, 8 are needed",
        "the causal test does not tell: the interval leaves it open",
    ]
    row["undecided"] = str(draw.choice(reasons)) if undecided and draw.random() < 0.7 else ""
    if tested and draw.random() < 0.8:
        change = {name: draw.uniform(0, 3) for name in ("change", "others_change")}
        row |= change | {"verdict": str(draw.choice(["no change", "change", "undecided"]))}
        row["attention_from_text"] = draw.uniform(0, 4) if draw.random() < 0.8 else None
    elif tested:
        row |= {"change": None, "others_change": None, "verdict": ""}
    return row


def drawn_sparsity(seed: int) -> Result:
    draw = np.random.default_rng(seed)
    some = draw.random(3) < 0.7
    some[draw.integers(3)] = True
    result = sparsity(*draw.dirichlet([1, 1, 1]) * some)
    frame, images = result.frame, int(draw.integers(2, 99))
    for i, row in frame.iterrows():
        if row["images"] and row["measure"] not in ("share", "tokens"):
            scale = 90 if row["measure"] == "norm" else 1
            frame.loc[i, ["value", "low", "high"]] = with_interval(draw, 0, scale)
    if draw.random() < 0.7:
        row = dict(zip(["value", "low", "high"], with_interval(draw, 0, 0.4), strict=True))
        row |= {"measure": "common", "class": "alive", "layer": None}
        row["images"] = int(draw.integers(0, 3))
        frame = pd.concat([frame, pd.DataFrame([row])], ignore_index=True)
        frame["layer"] = frame["layer"].astype("Int64")
    meta: dict[str, Any] = {"images": images}
    if draw.random() < 0.9:
        kind = {"undecided": bool(draw.random() < 0.4), "tested": bool(draw.random() < 0.7)}
        rows = [drawn_direction(draw, images, **kind) for _ in range(draw.integers(0, 6))]
        said = [f"{row['class']} undecided: {row['undecided']}" for row in rows if row["undecided"]]
        meta |= {"evidence": rows, "undecided": list(dict.fromkeys(said))}
    return Result("sparsity", frame, result.tensors, {**result.meta, **meta})


@pytest.mark.parametrize("seeds", DRAWN, ids=len)
def test_drawn_alignments_say_the_numbers_of_their_tables(seeds: range) -> None:
    """With every outcome among them."""
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        result = drawn_alignment(seed)
        assert_all_told(result)
        outcomes[outcome(result)] += 1
    assert len(outcomes) == 5, outcomes
    assert min(outcomes.values()) >= 2, outcomes


@pytest.mark.parametrize("seeds", DRAWN, ids=len)
def test_drawn_sparsities_say_the_numbers_of_their_tables(seeds: range) -> None:
    said = [sentence for seed in seeds for sentence in assert_all_told(drawn_sparsity(seed))]
    for start, _ in SPARSITY:
        assert sum(bool(re.match(start, sentence)) for sentence in said) >= 2, start


def test_a_number_that_is_changed_is_noticed() -> None:
    """One unit of the last digit, in any number of any sentence."""
    for result in (drawn_alignment(1), alignment(), drawn_sparsity(1), sparsity(0.6, 0.3, 0.1)):
        for sentence in find(result.name).findings(result):
            for match in re.finditer(r"(?<![\w.“])\d+(?:\.\d+)?", sentence):
                last = str((int(match[0][-1]) + 2) % 10)
                with pytest.raises(AssertionError):
                    assert_told(
                        result, sentence[: match.end() - 1] + last + sentence[match.end() :]
                    )


def test_the_numbers_of_what_has_to_be_so_for_agreement_are_those_that_decide() -> None:
    """Just inside of what is said the verdict is that it agrees, just outside that it does not."""

    def verdict(result: Result, claim: int) -> tuple[str, list[float]]:
        found = judged(find(result.name).claims(result))[claim]
        return found.verdict, [number for number, _ in numbers_in(found.agrees_if)]

    for i, name in enumerate(("alive", "dead", "sink")):
        told = find("sparsity").claims(sparsity(0.6, 0.3, 0.1))[i]
        ((expected, _),), ((points, _),) = numbers_in(told.claim), numbers_in(told.agrees_if)
        for off, kind in ((-1, "differs"), (1, "agrees")):
            for side in (-1, 1):
                made = sparsity(0.6, 0.3, 0.1)
                share = (expected + side * (points - off * 0.2)) / 100
                spread = torch.linspace(-1, 1, 37).double() * 0.0005
                made.tensors["shares"][:, ("sink", "dead", "alive").index(name)] = share + spread
                assert verdict(made, i)[0] == kind
    made = sparsity(0.6, 0.3, 0.1)
    (more,), (least,) = (verdict(made, i)[1] for i in (3, 4))
    spread = torch.linspace(-1, 1, 37).double() * 0.001
    made.tensors["cosines"] = torch.full((3, 300, 300), 0.3).double()
    for off, kind in ((-0.05, "differs"), (0.05, "agrees")):
        made.tensors["cosines"][1] = 0.3 + more + off
        made.tensors["stability"][:, :, 1] = least + off / 5 + spread[:, None]
        assert verdict(made, 3)[0] == verdict(made, 4)[0] == kind
    for off, kind in ((0.03, "differs"), (-0.03, "agrees")):
        (factor,) = verdict(alignment(), 1)[1]
        for norm in (15.8 * (factor + off), 15.8 / (factor + off)):
            made = alignment(2, (0.8, 2.0, norm, 52.1, 57.3))
            assert verdict(made, 1)[0] == kind
            assert ("no layer is close" in assert_all_told(made)[-1]) == (kind == "differs")


@pytest.mark.parametrize("name", ["alignment", "sparsity"])
def test_the_caption_has_no_number_but_the_level(name: str) -> None:
    analysis = find(name)
    assert numbers_in(analysis.caption) == [(95.0, 0.5)]
    assert numbers_in(analysis.method) == []


@pytest.fixture(scope="module")
def random_weights(model: VisualLM) -> tuple[VisualLM, Batch]:
    """Eight images of a model that nobody trained; no token is dead or a sink."""
    batch = model.encode([[tiny.image(i)] for i in range(8)], ["what is this ?"] * 8)
    nothing = np.zeros(len(batch.visual), dtype=bool)
    names = ("vit-sink", "llm-sink", "dead")
    return model, batch.with_classes(TokenClasses(dict.fromkeys(names, nothing)))


def test_where_nothing_is_aligned_the_numbers_are_those_of_the_tables(
    random_weights: tuple[VisualLM, Batch],
) -> None:
    model, batch = random_weights
    result = alignment_of(model, batch, ["the red star is left", "a blue circle", "what is this ?"])
    assert outcome(result) in ("chance", "none")
    assert_all_told(result)
    few = alignment_of(model, batch.subset([0]), ["a blue circle"])
    assert outcome(few) == "unknown"
    assert_all_told(few)


def test_where_none_is_dead_the_numbers_are_those_of_the_tables(
    random_weights: tuple[VisualLM, Batch],
) -> None:
    model, batch = random_weights
    first, second = assert_all_told(sparsity_of(model, batch))
    assert first.startswith("Of the visual tokens of 8 images, 100.0 %")
    assert second.startswith("No sink and dead tokens were found")
    labels = batch.classes
    assert labels is not None
    some = np.arange(len(batch.visual)) % 4 == 0
    batch = batch.with_classes(TokenClasses({**labels.membership, "common": some}))
    assert assert_all_told(sparsity_of(model, batch))[2].startswith("25.0 % ")


@pytest.mark.parametrize("images", [3, pytest.param(10, marks=pytest.mark.full)])
def test_of_the_shipped_model_the_numbers_are_those_of_its_tables(
    shipped: VisualLM, images: int
) -> None:
    """With three images all is undecided, with ten the causal test is taken."""
    pictures = [scene.image() for scene in scenes(images, start=700)]
    texts = [scene.describe() for scene in scenes(12, start=900)]
    found = analyze(shipped, pictures, PROMPT, texts=texts, analyses=["sparsity", "alignment"])
    classes, layer = sorted(found, key=lambda result: result.name != "sparsity")
    said = " ".join(assert_all_told(classes) + assert_all_told(layer))
    assert ("Exchanged between images" in said) == (images == 10)
    assert (f"{images} images are too few: 8 or more" in said) == (images == 3)
    assert (f"Of {images} images no layer is named" in said) == (images == 3)
    tokens = classes.frame.query("measure == 'tokens'").set_index("class")["value"]
    counted = layer.meta["visual_tokens"] + layer.meta["visual_sinks"]
    assert counted == round(images * (tokens.sum() if images == 3 else tokens["alive"]))
    assert layer.meta["texts"] == len(set(texts))
    mean = classes.tensors["shares"].double().mean(0).numpy()
    shown = classes.frame.query("measure == 'share'").set_index("class")["value"]
    assert mean == pytest.approx([shown[name] for name in ("sink", "dead", "alive")], abs=EQUAL)
    medians = layer.tensors["norm"].median().item()
    assert numbers_in(assert_all_told(layer)[-1])[0][0] == pytest.approx(medians, rel=0.02)
