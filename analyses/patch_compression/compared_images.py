"""Tables of what was answered and read, beside images exchanged and beside other tokens."""

from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from ..statistics import Region, bootstrap_mean, evidence, proportion
from .answers_and_words import LensHits
from .benchmark import PatchBenchmark
from .permuted_truth import BesideOthers, beside_others, exchanged_places

MORE = 0.05
"""What counts as more than chance: a share of images."""
MOSTLY = 0.5
"""What counts as most answers."""

Row = dict[str, Any]
_NONE: Row = dict.fromkeys(("value", "low", "high"), nan)


def lens_rows(hits: Sequence[LensHits], seed: int) -> list[Row]:
    """By layer: the token of the cell beside images exchanged, and beside other tokens."""
    rows: list[Row] = []
    for layer, each in enumerate(hits):
        about = {"measure": "lens hit", "layer": layer}
        beside = beside_others(each.cell, seed=seed)
        rows.append({**about, "tokens": "cell", **_beside(beside, judged=layer == 0)})
        own = each.cell.diagonal()
        rows.append(
            {
                **about,
                "tokens": "others",
                **bootstrap_mean(each.others, bounds=(0.0, 1.0), seed=seed).row(),
                **bootstrap_mean(own - each.others, bounds=(-1.0, 1.0), seed=seed).row(
                    name="difference"
                ),
                "p": exchanged_places(own, each.others, each.n_others) if each.n_others else nan,
                "images": len(own),
            }
        )
        near = bootstrap_mean(each.neighbours, bounds=(0.0, 1.0), seed=seed)
        rows.append({**about, "tokens": "neighbours", **near.row(), "images": len(own)})
    return rows


def accuracies(drawn: PatchBenchmark, chosen: Sequence[str], seed: int) -> list[Row]:
    """By question, beside the same answers with the images exchanged."""
    questions, rows = drawn.questions, list[Row]()
    for name in drawn.templates:
        asked = [i for i, q in enumerate(questions) if q.question == name]
        if not asked:
            continue
        truths = np.array([questions[i].answer for i in asked])
        fits = np.array([chosen[i] for i in asked])[:, None] == truths[None, :]
        # Truths are dealt out among images that could have them.
        kinds = [questions[i].choices for i in asked]
        strata = np.array([kinds.index(choices) for choices in kinds])
        beside = beside_others(fits, strata, seed=seed)
        rows.append({"measure": "accuracy", "question": name, **_beside(beside)})
    return rows


def conditionals(
    drawn: PatchBenchmark,
    right: Bool[np.ndarray, " question"],
    hits: Bool[np.ndarray, " image"],
    seed: int,
) -> list[Row]:
    """Other answers where the identity is right and where not, where the token is read or not."""
    questions = drawn.questions
    of = np.array([q.item for q in questions])
    named = np.array([q.question for q in questions])
    truth = [q.answer for q in questions]
    identity = {int(of[i]): bool(right[i]) for i in np.flatnonzero(named == "identity")}
    read = dict(enumerate(hits.tolist()))
    rows: list[Row] = []
    for known, what, names in (
        (identity, "identity", ("identity right", "identity wrong")),
        (read, "lens hit", ("lens hit", "no lens hit")),
    ):
        given = np.array([known.get(int(item), False) for item in of])
        counted = np.array([int(item) in known for item in of])
        for asked in (("color",), ("count",), ("color", "count"), ("identity",)):
            if what in asked:
                continue
            here = counted & np.isin(named, asked)
            if here.any():
                about = {"measure": "conditional", "question": " and ".join(asked)}
                found = _given(right, here, given, of, truth, names, seed)
                rows += [{**about, **row} for row in found]
    return rows


def _given(
    right: Bool[np.ndarray, " question"],
    here: Bool[np.ndarray, " question"],
    given: Bool[np.ndarray, " question"],
    of: Int[np.ndarray, " question"],
    truth: Sequence[str],
    names: tuple[str, str],
    seed: int,
) -> list[Row]:
    """Two rows: where it is given, and where not."""
    rows: list[Row] = []
    for mine, name in zip((here & given, here & ~given), names, strict=True):
        value = proportion(right[mine].astype(float), of[mine]).row() if mine.any() else _NONE
        rows.append({"given": name, **value, "images": len(np.unique(of[mine]))})
    if rows[0]["images"]:
        yes = here & given
        found = evidence(
            lambda level, times: proportion(
                right[yes].astype(float), of[yes], level=level, times=times
            ),
            Region(low=MOSTLY),
            rows[0]["images"],
        )
        rows[0] |= found.row()
        # Several answers about one image are not exchanged one by one.
        if max(np.bincount(of[here])) == 1:
            rows[0] |= _beside_same_truth(right[here], given[here], np.array(truth)[here], seed)
    return rows


def _beside_same_truth(
    right: Bool[np.ndarray, " image"],
    given: Bool[np.ndarray, " image"],
    truth: np.ndarray,
    seed: int,
) -> Row:
    """Whether answers are right more often where something is given, than elsewhere.

    Only images with the same right answer are exchanged. A lens that reads "red" everywhere and a
    model that says "red" always are right in the same images, which have nothing else in common.
    """
    _, strata = np.unique(truth, return_inverse=True)
    beside = beside_others(given[:, None] & right[None, :], strata, seed=seed)
    counted = beside.kept(given)
    if not counted.any():
        return {}
    apart = bootstrap_mean(beside.difference[counted], bounds=(-1.0, 1.0), seed=seed)
    return {
        "expected": float(beside.expected[counted].mean()),
        **apart.row(name="difference"),
        "p": beside.p,
    }


def color_bias(drawn: PatchBenchmark, chosen: Sequence[str], seed: int) -> Row:
    """How often the answered colour is the background's, beside other backgrounds."""
    asked = [i for i, q in enumerate(drawn.questions) if q.question == "color"]
    if not asked:
        return {"measure": "color bias", **_NONE, "images": 0}
    items = [drawn.items[drawn.questions[i].item] for i in asked]
    said = np.array([chosen[i] for i in asked])
    fits = said[:, None] == np.array([item.background for item in items])[None, :]
    # A background never has the object's colour: exchanged among objects of one colour only.
    _, strata = np.unique([item.color for item in items], return_inverse=True)
    return {"measure": "color bias", **_beside(beside_others(fits, strata, seed=seed), judged=True)}


def _beside(beside: BesideOthers, *, judged: bool = False) -> Row:
    """A row of readings beside exchanged images; with the evidence of a verdict where it counts."""
    n = len(beside.own)
    if not n:
        return {**_NONE, "images": 0}
    row: Row = {
        **proportion(beside.own).row(),
        "expected": float(beside.expected.mean()),
        **beside.estimate().row(name="difference"),
        "p": beside.p,
        "images": n,
    }
    return row | evidence(beside.estimate, Region(low=MORE), n).row() if judged else row
