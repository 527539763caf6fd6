"""What alignment says, computed again from its table."""

from __future__ import annotations

import re

import pandas as pd

from embedlens.analyses import Result
from oracles.numbers_in_sentences import (
    Numbers,
    Sentence,
    apart,
    around,
    assert_numbers,
    plain,
    row_of,
    shown_p,
)

OTHERS = {
    "raw cosine": ("cosine", False),
    "centred cosine": ("cosine", True),
    "CKA": ("CKA", None),
    "mutual neighbours": ("mutual neighbours", None),
}
NO_LAYER = {
    "none": "no layer stands out",
    "chance": "not aligned above chance",
    "few": "too few images to name a layer",
    "unknown": "nothing to compare",
}


def nearest_layer(result: Result) -> pd.Series:
    return row_of(result.frame, measure="nearest layer", by="standardised cosine")


def explained(result: Result) -> pd.Series:
    return row_of(result.frame, measure="share within one layer")


def chance(result: Result) -> float:
    return float(row_of(result.frame, measure="chance p")["value"])


def outcome(result: Result) -> str:
    """Whether a layer is named, or what stands against it."""
    p, share = chance(result), explained(result)
    if p != p or pd.isna(nearest_layer(result)["value"]):
        return "unknown"
    if p > 0.05:
        return "chance"
    if pd.isna(share["low"]):
        return "few"
    return "layer" if 3 * share["low"] >= 2 else "none"


def place_in_model(layer: float, last: int) -> str:
    """How the report calls a layer, by its share of the way through the model."""
    way = layer / last
    if way in (0, 1):
        return "the end of the model, where" if way else "the input embeddings, where"
    if way < 0.25:
        return "behind the input embeddings, but not in the middle"
    return "an intermediate layer, as the paper" if way <= 0.75 else "behind the middle"


def layer_of(result: Result) -> Numbers:
    row = nearest_layer(result)
    return [*plain(row), 0, result.meta["layers"]]


def named(result: Result, match: re.Match[str]) -> Numbers:
    assert outcome(result) == "layer"
    layer = nearest_layer(result)["value"]
    assert place_in_model(layer, result.meta["layers"]) in match.string
    return [*layer_of(result), 100 * explained(result)["value"], shown_p(chance(result))]


def not_named(result: Result, _: re.Match[str]) -> Numbers:
    assert outcome(result) == "none"
    return [shown_p(chance(result)), *around(explained(result))]


def by_chance(result: Result, _: re.Match[str]) -> Numbers:
    assert outcome(result) == "chance"
    return [chance(result)]


def few_images(result: Result, _: re.Match[str]) -> Numbers:
    assert outcome(result) == "few"
    assert result.meta["images"] < 8
    return [result.meta["images"]]


def other_measures(result: Result, match: re.Match[str]) -> Numbers:
    parts = re.split(r", | and ", match.string.partition(": ")[2].rstrip("."))
    found: Numbers = []
    for part, (name, (by, centred)) in zip(parts, OTHERS.items(), strict=True):
        assert part.startswith(f"{name} ")
        rows = result.frame[result.frame["measure"] == "nearest layer"]
        rows = rows[rows["centred"].isna() if centred is None else rows["centred"] == centred]
        row = row_of(rows, by=by)
        assert ("no layer" in part) == bool(pd.isna(row["low"]))
        ends = [] if pd.isna(row["low"]) else [row["low"], row["high"]]
        found += ends[:1] if len(set(ends)) == 1 else ends
    return found


def ends_of_same_layer(result: Result) -> tuple[pd.Series, pd.Series]:
    last = result.meta["layers"]
    where = {"measure": "standardised cosine", "comparison": "same layer", "states": "visual"}
    first, end = (row_of(result.frame, **where, layer=layer) for layer in (0, last))
    return first, end


def inside(result: Result, match: re.Match[str]) -> Numbers:
    first, end = ends_of_same_layer(result)
    turn = apart(end, first, ("rises", "does not clearly move", "falls"))
    assert f"one layer {turn} from" in match.string
    return [*plain(first), *plain(end)]


def medians(result: Result) -> tuple[float, int, float]:
    """Of entering tokens; the layer of text whose median is nearest; and that."""
    rows = result.frame[result.frame["measure"] == "norm"]
    entry = float(row_of(rows, states="entry", layer=0)["value"])
    layers = range(result.meta["layers"] + 1)
    text = [float(row_of(rows, states="text", layer=layer)["value"]) for layer in layers]
    nearest = min(layers, key=lambda layer: abs(text[layer] - entry))
    return entry, nearest, text[nearest]


def by_norm(result: Result, match: re.Match[str]) -> Numbers:
    entry, layer, text = medians(result)
    end = "but no layer is close."
    if 1 / 1.5 <= entry / text <= 1.5:
        end = "which says nothing of tokens that are not aligned."
        if outcome(result) in ("layer", "none"):
            end = place_in_model(layer, result.meta["layers"])
    assert end in match.string.partition("), ")[2]
    return [entry, layer, text]


NAMED = r"By direction, entering tokens are like text"
OTHER = r"By other measures: "
INSIDE = r"Inside the model, the standardised cosine"
NORM = r"By norm, entering tokens"
WITHOUT = {
    "none": r"Entering tokens are nearer to text than chance",
    "chance": r"Entering tokens are not aligned with the text of any layer",
    "few": r"Of \d+ images no layer is named",
    "unknown": r"There is no layer to name",
}
ALIGNMENT: list[Sentence] = [
    (NAMED, named),
    (WITHOUT["none"], not_named),
    (WITHOUT["chance"], by_chance),
    (WITHOUT["few"], few_images),
    (WITHOUT["unknown"], lambda *_: []),
    (OTHER, other_measures),
    (INSIDE, inside),
    (NORM, by_norm),
]


def said_of_alignment(result: Result) -> list[str]:
    """How the sentences begin that have to be said, in their order."""
    known = not pd.isna(ends_of_same_layer(result)[0]["value"])
    kind = outcome(result)
    first = [NAMED, OTHER] if kind == "layer" else [WITHOUT[kind]]
    return [*first, *[INSIDE] * known, NORM]


def assert_claims_of_alignment(result: Result, direction: str, norm: str) -> None:
    """What stands beside the two claims."""
    kind = outcome(result)
    entry, layer, text = medians(result)
    if kind == "layer":
        assert_numbers(direction, layer_of(result))
    else:
        assert direction == NO_LAYER[kind]
    assert_numbers(norm, [layer, text, entry])
    why = "" if kind in ("layer", "none") else NO_LAYER[kind]
    assert norm.partition("; ")[2] == why
