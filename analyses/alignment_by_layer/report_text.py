"""What alignment says: the layer that visual tokens resemble, or that there is none."""

from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..numbers_in_words import (
    apart,
    counted,
    depth,
    estimate,
    listing,
    number,
    p_value,
    percent,
    share,
)
from ..select_rows import one, select
from .answer import Answer, answer
from .claims import Norms, claims, direction_in_words
from .curves_by_layer import STANDARDISED
from .figure import draw_alignment
from .measure import alignment


def _findings(result: Result) -> list[str]:
    frame, last = result.frame, int(result.meta["layers"])
    found = answer(frame)
    said = [_direction(found, result)]
    if found.kind == "layer":
        rows = select(frame, measure="nearest layer")
        others = [_other(row) for _, row in rows[rows["by"] != STANDARDISED.name].iterrows()]
        said.append(f"By other measures: {listing(others)}.")
    same = {"measure": STANDARDISED.name, "comparison": "same layer", "states": "visual"}
    first, end = one(frame, **same, layer=0), one(frame, **same, layer=last)
    if first["value"] == first["value"]:
        turn = {1: "rises", 0: "does not clearly move", -1: "falls"}[apart(end, first)]
        said.append(
            f"Inside the model, the standardised cosine of visual and text states of one layer "
            f"{turn} from {estimate(first)} to {estimate(end)}."
        )
    norms = Norms.of(result)
    said.append(
        f"By norm, entering tokens (median {number(norms.entry, 1)}) are nearest to the text "
        f"states of layer {norms.layer} (median {number(norms.text, 1)})"
        + (
            f", {_against_the_paper(norms.layer, last)}."
            if norms.close and found.kind in ("layer", "none")
            else ", which says nothing of tokens that are not aligned."
            if norms.close
            else ", but no layer is close."
        )
    )
    return said


def _direction(found: Answer, result: Result) -> str:
    """The layer, or why none is named."""
    last, p = int(result.meta["layers"]), p_value(found.p)
    if found.kind == "layer":
        return (
            f"By direction, entering tokens are like text: {direction_in_words(found, last)}, "
            f"{_against_the_paper(int(found.layer['value']), last)}; layers within one of it "
            f"explain {percent(found.share['value'])} of what they have above chance ({p})."
        )
    if found.kind == "none":
        return (
            f"Entering tokens are nearer to text than chance ({p}), but no layer stands out: "
            f"those within one of the nearest explain {share(found.share)} of it, and two "
            "thirds are asked."
        )
    if found.kind == "chance":
        return (
            "Entering tokens are not aligned with the text of any layer above chance: with their "
            f"dimensions shuffled they come as near ({p})."
        )
    if found.kind == "few":
        return (
            f"Of {result.meta['images']} images no layer is named: eight are the fewest for an "
            "interval."
        )
    return "There is no layer to name: it takes several visual tokens, and two sentences or more."


def _other(row: "pd.Series[Any]") -> str:
    """What another measure says: one layer or a range of them."""
    known, centred = row["low"] == row["low"], row["centred"]
    sort = "" if pd.isna(centred) else "centred " if centred else "raw "
    low, high = (f"{row[end]:.0f}" for end in ("low", "high"))
    where = f"layers {low} to {high}" if low != high else f"layer {low}"
    return f"{sort}{row['by']} {where if known else 'no layer'}"


def _against_the_paper(layer: int, last: int) -> str:
    return {
        "embedding": "the input embeddings, where the paper argues for intermediate layers",
        "shallow": "behind the input embeddings, but not in the middle that the paper argues for",
        "middle": "an intermediate layer, as the paper argues",
        "deep": "inside the model, but behind the middle that the paper argues for",
        "end": "the end of the model, where the paper argues for intermediate layers",
    }[depth(layer, last)]


def _data(result: Result) -> str:
    meta = result.meta
    kind = "visual tokens" if meta["tokens"] == "visual" else f"{meta['tokens']} visual tokens"
    return (
        f"Here: {meta['visual_tokens']} {kind} of {counted(meta['images'], 'image')}, "
        f"and {meta['text_tokens']} text tokens of {meta['texts']} sentences without images; left "
        f"out as sinks: {meta['visual_sinks']} visual and {meta['text_sinks']} text tokens."
    )


ALIGNMENT = Analysis(
    name="alignment",
    run=lambda m: alignment(m.model, m.batches, m.texts, tokens=m.tokens, seed=m.seed),
    figure=draw_alignment,
    doing="comparing with text",
    order=50,
    passes=lambda e: e.images + e.text,
    heading="Which layer’s text states do visual tokens resemble?",
    method="For every visual token the largest cosine to any text state of a layer, averaged; once "
    "for the tokens as they enter the model, once for their own states at that layer. "
    "Standardised: unit vectors less their mean, every dimension over its spread in the text. Text "
    "of every layer, put in the visual tokens’ place and compared with the other sentences, shows "
    "what the curve of each layer looks like; the nearest layer is that of the most similar curve. "
    "It is named only if shuffled dimensions come less near, and layers within one explain two "
    "thirds of the curve.",
    caption="(a–e) Grey: text of every layer; bands are 95 % over images. CKA and mutual "
    "neighbours compare an image’s standardised directions with the text’s. (f) Median norms with "
    "the quartiles of the tokens; layer l is the residual stream entering it.",
    findings=_findings,
    claims=claims,
    data=_data,
    claims_order=30,
)
register(ALIGNMENT)
