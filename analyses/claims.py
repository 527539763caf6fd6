"""The paper's claims beside what was measured here, each with where the claim was read.

Paper: "What Do Visual Tokens Really Encode? Uncovering Sparsity and Redundancy in Multimodal Large
Language Models" (EmbedLens, CVPR 2026). Only its title page, abstract and first lines were at
hand; claims that other people reported from its body are marked as second-hand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .result import Result
from .rows import one, select
from .wording import apart, depth, difference, estimate, number, share

Verdict = Literal["agrees", "partly", "differs", "unclear"]

ABSTRACT = "abstract"
SECOND_HAND = "second-hand"

_MARGIN = 0.05  # accuracy: what counts as no difference, given an interval inside it


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, for other and larger models, and what was found here.

    Attributes:
        claim: What the paper says.
        source: ``abstract`` (read in the paper) or ``second-hand``.
        here: What was measured.
        verdict: Whether that agrees.
    """

    claim: str
    source: str
    here: str
    verdict: Verdict


def claims(results: Mapping[str, Result]) -> list[Claim]:
    """The claims that the given results, by name, can speak to."""
    return [claim for name, make in _CLAIMS if name in results for claim in make(results[name])]


def _sparsity(result: Result) -> list[Claim]:
    frame = result.frame
    rows = {c: one(frame, **{"measure": "share", "class": c}) for c in ("alive", "dead", "sink")}
    found = [
        Claim(
            "About 60 % of visual tokens are alive.",
            ABSTRACT,
            share(rows["alive"]),
            _near(rows["alive"], 0.6),
        )
    ]
    for name, expected in (("dead", 0.3), ("sink", 0.1)):
        row = rows[name]
        here = share(row) if row["images"] else "none found"
        text = f"About {100 * expected:.0f} % are {name} tokens."
        verdict = _near(row, expected) if row["images"] else "differs"
        found.append(Claim(text, SECOND_HAND, here, verdict))
    if rows["dead"]["images"] and rows["alive"]["images"]:
        found += _dead_tokens(result)
    return found


def _near(row: Mapping[str, Any], expected: float) -> Verdict:
    if row["low"] != row["low"]:
        return "unclear"
    return "agrees" if row["low"] - 0.05 <= expected <= row["high"] + 0.05 else "differs"


def _dead_tokens(result: Result) -> list[Claim]:
    def of(name: str) -> dict[str, Any]:
        return one(result.frame, **{"measure": "cosine of tokens", "class": name})

    dead, alive = of("dead"), of("alive")
    alike: dict[int, Verdict] = {1: "agrees", 0: "unclear", -1: "differs"}
    curve = select(result.frame, **{"measure": "stability", "class": "dead"})["value"]
    steady: Verdict = (
        "agrees" if curve.min() > 0.95 else "partly" if curve.mean() > 0.9 else "differs"
    )
    return [
        Claim(
            "Dead tokens are much alike in all images.",
            SECOND_HAND,
            f"mean cosine {estimate(dead)}, alive {estimate(alive)}",
            alike[apart(dead, alive)],
        ),
        Claim(
            "Dead tokens hardly change from layer to layer.",
            SECOND_HAND,
            f"cosine {number(curve.min())} to {number(curve.max())}, by layer",
            steady,
        ),
    ]


def _lens_hits(result: Result) -> list[Claim]:
    frame = result.frame
    own = one(frame, lens="EmbedLens", layer=0, k=1, truth="own")
    chance = one(frame, lens="EmbedLens", layer=0, k=1, truth="permuted")
    k = sorted(frame["k"].unique())[len(frame["k"].unique()) // 2]
    half = int(frame["layer"].max()) // 2
    better = [
        apart(
            one(frame, lens="EmbedLens", layer=layer, k=k, truth="own"),
            one(frame, lens="LogitLens", layer=layer, k=k, truth="own"),
        )
        for layer in range(half + 1)
    ]
    lenses: Verdict = "agrees" if min(better) == 1 else "partly" if max(better) == 1 else "differs"
    meaning: dict[int, Verdict] = {1: "agrees", 0: "unclear", -1: "differs"}
    return [
        Claim(
            "Visual tokens already carry meaning before the language model, such as objects and "
            "colours.",
            ABSTRACT,
            f"right first word {share(own)}, permuted truth {share(chance)}",
            meaning[apart(own, chance)],
        ),
        Claim(
            "EmbedLens reads shallow and middle layers better than LogitLens.",
            SECOND_HAND,
            f"clearly better at {better.count(1)} of the first {len(better)} layers (top {k})",
            lenses,
        ),
    ]


def _alignment(result: Result) -> list[Claim]:
    last = int(result.meta["layers"])
    peaks = [
        int(one(result.frame, measure="peak layer", comparison="entry", centred=c)["value"])
        for c in (False, True)
    ]
    places = [depth(peak, last) for peak in peaks]
    inside = [place not in ("embedding", "end") for place in places]
    matched = int(one(result.frame, measure="norm-matched layer")["value"])
    text = one(result.frame, measure="norm", states="text", layer=matched)["value"]
    entry = one(result.frame, measure="norm", states="entry", layer=0)["value"]
    close = max(entry, text) <= 1.5 * min(entry, text)
    return [
        Claim(
            "Alive tokens align with intermediate layers rather than with the input embeddings "
            "(here: by direction).",
            ABSTRACT,
            f"nearest layer {peaks[0]} raw, {peaks[1]} centred, of 0 to {last}",
            "agrees" if set(places) == {"middle"} else "partly" if any(inside) else "differs",
        ),
        Claim(
            "Norms of entering visual tokens match those of text in middle layers.",
            SECOND_HAND,
            f"nearest layer {matched}: text {number(text, 1)}, visual {number(entry, 1)}",
            _in_the_middle(matched, last) if close else "differs",
        ),
    ]


def _in_the_middle(layer: int, last: int) -> Verdict:
    place = depth(layer, last)
    if place == "middle":
        return "agrees"
    return "differs" if place in ("embedding", "end") else "partly"


def _ablation(result: Result) -> list[Claim]:
    found = []
    for operation, name in (("attention", "attention"), ("ffn", "FFN")):
        rows = select(result.frame, task="all", operation=operation, scope="above", layer=0)
        if rows.empty:
            continue
        row = one(rows)
        found.append(
            Claim(
                f"Visual {name} inside the language model is redundant for most tasks.",
                ABSTRACT,
                f"{difference(row)} without it in any layer",
                _redundant(row),
            )
        )
    return found


def _redundant(row: Mapping[str, Any]) -> Verdict:
    if row["difference_low"] >= -_MARGIN:
        return "agrees"
    return "differs" if row["difference_high"] < -_MARGIN else "unclear"


_CLAIMS: tuple[tuple[str, Callable[[Result], list[Claim]]], ...] = (
    ("sparsity", _sparsity),
    ("lens_hits", _lens_hits),
    ("alignment", _alignment),
    ("ablation", _ablation),
)
