"""What patch compression says: what one token carries, and whether answers follow the rest."""

from collections.abc import Mapping
from math import isnan
from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..claim import ABSTRACT, SECOND_HAND, Claim
from ..numbers_in_words import counted, difference, p_value, percent, points, share
from ..select_rows import one, records, select
from ..statistics import LEVEL, Evidence
from .answers_and_words import DOING
from .compared_images import MORE, MOSTLY
from .figure import draw_patch_compression
from .measure import patch_compression

_ASKED = {
    "identity": "what is in the cell",
    "color": "its colour",
    "count": "how many there are",
    "background": "the background’s colour",
    "color and count": "its colour and how many there are",
}
PAPER = (
    "The paper, second-hand, has 70 images with one object or character in one patch: where the "
    "object is named, most answers on colour and count are right, and a named colour often follows "
    "the background. Its numbers are not known."
)


def _findings(result: Result) -> list[str]:
    frame = result.frame
    return [_read(result), _answers(frame), *_given(frame), *_bias(frame), *_class(frame)]


def _read(result: Result) -> str:
    hits = select(result.frame, measure="lens hit", layer=0)
    cell, others = one(hits, tokens="cell"), one(hits, tokens="others")
    said = (
        "As it enters the language model, the token of the cell has a word for what is in it "
        f"among its first {result.meta['k']} ({result.meta['lens']}) in {share(cell)} of "
        f"{_images(cell)}; with images exchanged it would be in "
        f"{percent(cell['expected'])} ({_clear(cell)})"
    )
    if not isnan(others["value"]):
        said += f", and other tokens of the same image have one in {share(others)}"
        said += f" ({_clear(others)})"
    return f"{said}.{_views(result)}"


def _views(result: Result) -> str:
    if result.meta["benchmark"].get("views", 1) == 1:
        return ""
    return " The model looks at the image as a whole too, so that a coarser token sees the cell."


def _clear(row: Mapping[str, Any]) -> str:
    p = float(row["p_holm"])
    if p > 1 - LEVEL:
        return f"not clearly different, {p_value(p)}"
    return p_value(p)


def _answers(frame: pd.DataFrame) -> str:
    said = [
        f"asked for {_ASKED[row['question']]}, the model is right in {share(row)} of "
        f"{_images(row)}, with images exchanged in {percent(row['expected'])} ({_clear(row)})"
        for row in records(select(frame, measure="accuracy"))
    ]
    told = "; ".join(said)
    return f"{told[:1].upper()}{told[1:]}."


def _given(frame: pd.DataFrame) -> list[str]:
    rows = select(frame, measure="conditional", question="color and count")
    said = []
    for known, what, without in (
        ("identity right", "what is in the cell is named", "identity wrong"),
        ("lens hit", "the token is read as what is in it", "no lens hit"),
    ):
        mine = select(rows, given=known)
        if mine.empty:
            continue
        yes, no = one(rows, given=known), one(rows, given=without)
        if not yes["images"]:
            said.append(f"There is no image in which {what}.")
            continue
        here = f"Where {what} ({_images(yes)}), {share(yes)} of the answers on "
        here += "colour and count are right"
        here += f", elsewhere {share(no)}" if no["images"] else ""
        said.append(f"{here}{_beside_same(frame, known)}.")
    return said


def _beside_same(frame: pd.DataFrame, known: str) -> str:
    rows = records(select(frame, measure="conditional", given=known))
    tested = [row for row in rows if row["question"] != "identity" and not isnan(row["p_holm"])]
    said = "; ".join(f"{_ASKED[row['question']]}: {_clear(row)}" for row in tested)
    return f" (beside images with the same right answer, {said})" if said else ""


def _bias(frame: pd.DataFrame) -> list[str]:
    row = one(frame, measure="color bias")
    if not row["images"]:
        return []
    return [
        f"Asked for the colour of what is in the cell, the model names the background’s in "
        f"{share(row)} of {_images(row)}; with the backgrounds of objects of the same "
        f"colour exchanged it would be in {percent(row['expected'])} ({_clear(row)})."
    ]


def _class(frame: pd.DataFrame) -> list[str]:
    rows = records(select(frame, measure="class"))
    return [f"{share(row)} of the cells’ tokens are alive." for row in rows]


def _images(row: Mapping[str, Any]) -> str:
    return counted(int(row["images"]), "image")


def _claims(result: Result) -> list[Claim]:
    frame, margin = result.frame, points(MORE).removeprefix("+")
    cell = one(frame, measure="lens hit", layer=0, tokens="cell")
    found = [
        Claim(
            "One visual token can carry an object, its colour or a character before the language "
            "model.",
            ABSTRACT,
            f"the token of the cell has a word for it in {share(cell)}, "
            f"{difference(cell)} beside exchanged images",
            evidence=_evidence(cell),
            agrees_if=f"it has one more often, by at least {margin}",
        )
    ]
    given = select(frame, measure="conditional", question="color and count", given="identity right")
    if not given.empty:
        row = one(given)
        here = f"{share(row)} of them in {_images(row)}" if row["images"] else "no object was named"
        found.append(
            Claim(
                "Where the object in a patch is named, most answers on its colour and count are "
                "right.",
                SECOND_HAND,
                here,
                evidence=_evidence(row),
                agrees_if=f"more than {percent(MOSTLY)} are right",
            )
        )
    bias = one(frame, measure="color bias")
    if bias["images"]:
        found.append(
            Claim(
                "The colour that is named often follows the background instead of the object.",
                SECOND_HAND,
                f"the background’s in {share(bias)}, {difference(bias)} beside other backgrounds",
                evidence=_evidence(bias),
                agrees_if=f"it is named more often than by chance, by at least {margin}",
            )
        )
    return found


def _evidence(row: Mapping[str, Any]) -> Evidence | None:
    return None if isnan(float(row.get("agrees_p", float("nan")))) else Evidence.from_row(row)


def _table(result: Result) -> pd.DataFrame:
    rows = records(select(result.frame, measure="accuracy"))
    given = select(result.frame, measure="conditional", given="identity right")

    def named(question: str) -> str:
        mine = select(given, question=question)
        known = not mine.empty and bool(one(mine)["images"])
        return f"{share(one(mine))}, n = {one(mine)['images']}" if known else "–"

    return pd.DataFrame(
        {
            "Asked for": [_ASKED[row["question"]] for row in rows],
            "Images": [str(row["images"]) for row in rows],
            "Right": [share(row) for row in rows],
            "Images exchanged": [percent(row["expected"]) for row in rows],
            "Where what it is was right": [named(row["question"]) for row in rows],
        }
    )


def _data(result: Result) -> str:
    record = result.meta["benchmark"]
    size, cell = (" × ".join(map(str, record[name])) for name in ("size", "cell"))
    return (
        f"{counted(result.meta['images'], 'image')} of {size} pixels are drawn for this model, "
        "with a shape, a letter or digit, plain colour, or one to four shapes in one cell of "
        f"{cell}, on plain backgrounds. {PAPER}"
    )


PATCH_COMPRESSION = Analysis(
    name="patch_compression",
    run=lambda m: patch_compression(
        m.model,
        markers=m.markers,
        batch_size=m.examples_at_once,
        seed=m.seed,
        progress=m.progress,
    ),
    figure=draw_patch_compression,
    doing=DOING,
    order=28,
    passes=lambda e: 365,
    heading="What does a single token carry?",
    method="One thing lies in the cell of one visual token, and all around it is plain. An answer "
    "is the most probable of the given choices; a token is read as what is in its cell when one of "
    "the lens’ first words names the colour or kind. Both are compared with the same answers and "
    "words for other images (permutation), and the token with others of its image.",
    caption="(a) Right answers by question; grey, with images exchanged; and colour answers that "
    "name the background’s. (b) Tokens with a word for what is in the cell, by layer; dashed, with "
    "images exchanged. Bars and bands are 95 % intervals over images.",
    findings=_findings,
    claims=_claims,
    data=_data,
    table=_table,
    by_default=False,
    claims_order=22,
)
register(PATCH_COMPRESSION)
