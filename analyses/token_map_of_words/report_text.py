"""What a token map says: the most frequent nearest words, by class."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from ...lens.inputs.batch import Batch
from ..analysis import Analysis, Result, register
from ..numbers_in_words import listing, number, percent
from ..report_inputs import MOST_PICTURES, Material
from .figure import draw_token_map
from .further_layers import layers_that_fit
from .measure import token_map
from .shown import view_token_map

_MOST_WORDS = 6
_MOST_TEXTS = 200  # sentences beside the picture, each at every layer that is read


def _findings(result: Result) -> list[str]:
    frame = result.frame
    pictures = len(frame.groupby(["sample", "image"]))
    of = f"{pictures} images" if pictures > 1 else "one image"
    if frame["class"].isna().all():
        return [
            f"{len(frame)} visual tokens of {of} are read as words; their classes are not known.",
            f"The most frequent nearest words are {_frequent(result, None)}.",
        ]
    said = []
    for name in ("alive", "dead", "sink"):
        tokens = frame[frame["class"] == name]
        if len(tokens):
            said.append(
                f"Nearest words of the {len(tokens)} {name} tokens of {of}, most frequent first: "
                f"{_frequent(result, name)} (median cosine "
                f"{number(tokens['cosine_1'].median())})."
            )
    return said + _rightly(frame) + _without_words(frame)


def _rightly(frame: pd.DataFrame) -> list[str]:
    """How many of the alive tokens whose content is known have a right word."""
    if "hit" not in frame or frame["hit"].isna().all():
        return []
    known = frame[(frame["class"] == "alive") & frame["hit"].notna()]
    k, right = sum("word_" in name for name in frame.columns), int(known["hit"].sum())
    return [
        f"Of the {len(known)} alive tokens of which it is known what they show, {right} "
        f"({percent(right / len(known))}) have a word for it among their {k} nearest in these "
        "images."
    ]


def _without_words(frame: pd.DataFrame) -> list[str]:
    alive = (frame["class"] == "alive").groupby([frame["sample"], frame["image"]]).any()
    empty = int((~alive).sum())
    if not empty:
        return []
    of = f"{empty} of {len(alive)} images" if len(alive) > 1 else "the image"
    return [f"In {of} no token is alive, so that no words are drawn there."]


def _table(result: Result) -> pd.DataFrame | None:
    """The first three words of every alive token of the first image that has one."""
    alive = result.frame[result.frame["class"] == "alive"]
    if alive.empty:
        return None
    (_, first), *_ = alive.groupby(["sample", "image"])
    words = [name for name in ("word_1", "word_2", "word_3") if name in first.columns]
    table = {"Image": first["sample"] + 1, "Row": first["row"], "Column": first["col"]}
    table["Words, nearest first"] = first[words].agg(", ".join, axis=1)
    if "hit" in first and first["hit"].notna().any():
        table["Right"] = (
            first["hit"].map({True: "yes", False: "no"}).astype(object).fillna("unknown")
        )
    return pd.DataFrame(table)


def _frequent(result: Result, name: str | None) -> str:
    frame = result.frame if name is None else result.frame[result.frame["class"] == name]
    counts = frame["word_1"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    return listing(f"“{word}” {count}×" for word, count in counts.head(_MOST_WORDS).items())


def _run(material: Material) -> Result:
    batches = material.batches if material.pictured is None else material.pictured
    known = [material.true_words(batch) for batch in batches]
    truth = [words for each in known if each is not None for words in each]
    result = token_map(
        material.model,
        batches,
        truth=truth if material.truth else None,
        layers=layers_that_fit(material.model, _shown_in_a_report(batches)),
        texts=material.texts[:_MOST_TEXTS],
    )
    return replace(result, meta={**result.meta, "chosen": material.pictured_by})


def _shown_in_a_report(batches: Sequence[Batch]) -> int:
    """Tokens of the pictures that can be pointed into."""
    tokens = pictures = 0
    for batch in batches:
        for sample, images in enumerate(batch.images):
            if pictures < MOST_PICTURES:
                pictures += len(images)
                tokens += int((batch.visual.sample == sample).sum())
    return tokens


def _data(result: Result) -> str:
    """Maps that were not made for a report say nothing of how their images were chosen."""
    return str(result.meta.get("chosen", ""))


TOKEN_MAP = Analysis(
    name="token_map",
    run=_run,
    figure=draw_token_map,
    doing="reading visual tokens",
    order=10,
    passes=lambda e: 3 * e.images + e.text,
    heading="What do visual tokens say, and where?",
    method="Each visual token, as it enters the language model, is compared by cosine with every "
    "row of the input embedding matrix (EmbedLens); the nearest row is its first "
    "word.",
    data=_data,
    caption="Every cell is one visual token, tinted by its class. Alive tokens carry their nearest "
    "word and, on coarse grids, the next two below it where there is room; a dot marks those with "
    "a word for what the patch shows among all words that were read, where that is known. The "
    "table has three words of every alive token of the first image that has one.",
    table=_table,
    findings=_findings,
    view=view_token_map,
    headline=False,
)
register(TOKEN_MAP)
