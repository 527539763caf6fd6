"""What sparsity says, computed again from its table and the evidence on directions."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from embedlens.analyses import Result
from oracles.numbers_in_sentences import (
    Numbers,
    Sentence,
    apart,
    around,
    assert_numbers,
    numbers_in,
    plain,
    row_of,
)

CLASSES = ("alive", "dead", "sink")


def of_class(result: Result, measure: str, name: str) -> pd.Series:
    return row_of(result.frame, **{"measure": measure, "class": name})


def there(result: Result) -> list[str]:
    return [name for name in CLASSES if of_class(result, "share", name)["images"] > 0]


def shares(result: Result) -> Numbers:
    return [x for name in there(result) for x in around(of_class(result, "share", name))]


def directions(result: Result, name: str) -> list[dict[str, Any]]:
    rows = result.meta.get("evidence") or []
    return [row for row in rows if row["class"] == name and "word_cosine" in row]


def decided(result: Result, match: re.Match[str]) -> Numbers:
    assert not result.meta.get("undecided")
    assert re.findall(r"are (\w+)", match.string) == there(result)
    return [result.meta["images"], *shares(result)]


def lacking(result: Result, reason: str) -> Numbers:
    """The numbers of what is missing for a decision, from the direction that it is missing of."""
    rows = result.meta["evidence"]
    row = next(r for r in rows if f"{r['class']} undecided: {r['undecided']}" == reason)
    if "are too few" in reason:
        return [result.meta["images"], 8]
    if "have such tokens" in reason:
        return [row["tested_images"], 8]
    return [round(100 * row["token_share"])] if "tokens share it" in reason else []


def undecided(result: Result, match: re.Match[str]) -> Numbers:
    reasons = result.meta["undecided"]
    assert f"is undecided ({'; '.join(reasons)})." in match.string
    assert re.findall(r"would be (\w+)", match.string) == there(result)
    missing = [x for reason in reasons for x in lacking(result, reason)]
    return [result.meta["images"], *missing, *shares(result)]


def not_found(result: Result, match: re.Match[str]) -> Numbers:
    missing = [name for name in ("sink", "dead") if name not in there(result)]
    assert re.findall(r"\b(?:sink|dead)\b", match.string) == missing
    return []


def common(result: Result, match: re.Match[str]) -> Numbers:
    words = [str(row["words"]).split()[0] for row in directions(result, "common")]
    assert re.findall("“(.*?)”", match.string) == words[:3]
    return around(row_of(result.frame, measure="common"))


def tested(result: Result) -> list[dict[str, Any]]:
    return [row for row in directions(result, "dead") if row.get("verdict") not in (None, "")]


def not_tested(result: Result, _: re.Match[str]) -> Numbers:
    assert not tested(result)
    return []


def exchanged(result: Result, _: re.Match[str]) -> Numbers:
    rows = pd.DataFrame(tested(result))
    same = (rows["verdict"] == "no change").sum()
    largest = rows.loc[rows["token_share"].idxmax()]
    return [same, len(rows), largest["change"], largest["others_change"]]


def compared(
    result: Result, match: re.Match[str], measure: str, words: tuple[str, str, str]
) -> Numbers:
    dead, alive = (of_class(result, measure, name) for name in ("dead", "alive"))
    assert f" are {apart(dead, alive, words)}" in match.string
    return [*plain(dead), *plain(alive)]


def more_alike(result: Result, match: re.Match[str]) -> Numbers:
    words = ("far more alike", "not clearly more alike", "less alike")
    return compared(result, match, "cosine of tokens", words)


def larger(result: Result, match: re.Match[str]) -> Numbers:
    return compared(result, match, "norm", ("larger", "not clearly different", "smaller"))


def stability(result: Result, name: str) -> dict[int, float]:
    rows = result.frame[result.frame["measure"] == "stability"]
    rows = rows[rows["class"] == name]
    return dict(zip(rows["layer"].astype(int), rows["value"], strict=True))


def steady(result: Result, _: re.Match[str]) -> Numbers:
    dead, alive = (stability(result, name) for name in ("dead", "alive"))
    least = min(dead.values())
    layer = min(layer for layer, value in dead.items() if value == least)
    return [least, layer, min(alive.values())]


DECIDED, UNDECIDED = r"Of the visual tokens of", r"Which visual tokens of"
NOT_FOUND, COMMON = r"No (?:sink|dead)", r"[\d.]+ % (?:\(.*?\) )?of all tokens are common"
NOT_TESTED, EXCHANGED = r"That dead tokens carry nothing rests", r"Exchanged between images"
ALIKE, NORMS = r"Dead tokens of different images", r"Norms of dead tokens"
STEADY = r"From layer to layer"
SPARSITY: list[Sentence] = [
    (DECIDED, decided),
    (UNDECIDED, undecided),
    (NOT_FOUND, not_found),
    (COMMON, common),
    (NOT_TESTED, not_tested),
    (EXCHANGED, exchanged),
    (ALIKE, more_alike),
    (NORMS, larger),
    (STEADY, steady),
]


def said_of_sparsity(result: Result) -> list[str]:
    """How the sentences begin that have to be said, in their order."""
    found = there(result)
    some = result.frame[result.frame["measure"] == "common"]["images"].sum() > 0
    said = [UNDECIDED if result.meta.get("undecided") else DECIDED]
    said += [NOT_FOUND] * (not {"dead", "sink"} <= set(found))
    said += [COMMON] * bool(some)
    if "dead" in found and directions(result, "dead"):
        said.append(EXCHANGED if tested(result) else NOT_TESTED)
    return said + [ALIKE, NORMS, STEADY] * ({"dead", "alive"} <= set(found))


def assert_claims_of_sparsity(result: Result, here: list[str]) -> None:
    """What stands beside the claims: three shares, and what is said of dead tokens."""
    found = there(result)
    known = not result.meta.get("undecided")
    for name, said in zip(CLASSES, here[:3], strict=True):
        assert_numbers(said, around(of_class(result, "share", name)))
        assert said.startswith("none found") == (name not in found)
        assert said.endswith("; undecided") == (not known)
    if not (known and {"alive", "dead"} <= set(found)):
        assert len(here) == 3
        return
    alike, unchanged = here[3:]
    rows = [of_class(result, "cosine of tokens", name) for name in ("dead", "alive")]
    assert_numbers(alike, [x for row in rows for x in plain(row)])
    curve = stability(result, "dead").values()
    assert_numbers(unchanged, [min(curve), max(curve)])


def assert_table_of_sparsity(result: Result, table: pd.DataFrame | None) -> None:
    """One row per direction, and the numbers of its reasons those of its evidence."""
    rows = [row for row in result.meta.get("evidence") or [] if "word_cosine" in row]
    if not rows:
        assert table is None
        return
    assert table is not None
    columns = {
        "in images": ("image_share", 100), "of tokens": ("token_share", 100),
        "attention from text": ("attention_from_text", 1),
        "change (nats)": ("change", 1), "of as many others": ("others_change", 1),
    }  # fmt: skip
    for row, (_, shown) in zip(rows, table.iterrows(), strict=True):
        for column, (name, scale) in columns.items():
            value = row.get(name)
            assert_numbers(shown[column], [] if value is None else [scale * value])
        why = re.sub("carries '.*?' ", "", shown["because it recurs and"])
        assert_numbers(why, reason(row))
        words = [row["class"], *["undecided"] * bool(row["undecided"])]
        assert shown["class"].split(", ") == words
        assert shown["nearest words"] == row["words"]
        assert shown["exchanged between images"] == (row.get("verdict") or "not tested")


def reason(row: dict[str, Any]) -> Numbers:
    """The numbers of why a direction is of its class."""
    why = row["why"]
    if "norm before the projector" in why:
        return [row["vit_norm_ratio"]]
    if "to the first token" in why:
        return [row["first_token_cosine"], numbers_in(why)[-1][0]]
    if "times the median" in why:
        return [row["massive"]]
    return [row["centred_word_cosine"], row["chance_cosine"]]
