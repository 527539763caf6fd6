"""What alignment says: the layer that visual tokens resemble, by direction and by norm."""

from typing import NamedTuple

from ..analysis import Analysis, Result, register
from ..claim import ABSTRACT, SECOND_HAND, Claim
from ..numbers_in_words import apart, depth, estimate, number
from ..rows import one
from ..statistics import Verdict
from .figure import draw_alignment
from .measure import alignment

_CLOSE = 1.5  # how many times the smaller of two norms the larger may be, to be called close


class _Norms(NamedTuple):
    """Median norms of entering tokens and of the layer of text that is nearest by norm."""

    layer: int
    entry: float
    text: float

    @property
    def close(self) -> bool:
        return max(self.entry, self.text) <= _CLOSE * min(self.entry, self.text)


def _norms(result: Result) -> _Norms:
    layer = int(one(result.frame, measure="norm-matched layer")["value"])
    entry = one(result.frame, measure="norm", states="entry", layer=0)["value"]
    text = one(result.frame, measure="norm", states="text", layer=layer)["value"]
    return _Norms(layer, float(entry), float(text))


def _peak(result: Result, *, centred: bool) -> int:
    """The layer whose text states entering tokens are nearest to by direction."""
    where = {"measure": "peak layer", "comparison": "entry", "centred": centred}
    return int(one(result.frame, **where)["value"])


def _findings(result: Result) -> list[str]:
    frame, last = result.frame, int(result.meta["layers"])
    said = []
    for centred, sort in ((False, "raw"), (True, "mean-centred")):
        peak = _peak(result, centred=centred)
        place = {"measure": "cosine", "comparison": "entry", "centred": centred, "layer": peak}
        own = one(frame, **place, states="visual")
        chance = one(frame, **place, states="random")
        said.append(
            f"By {sort} direction, entering tokens are nearest to the text states of layer {peak} "
            f"(mean largest cosine {estimate(own)}, random vectors {estimate(chance)}), "
            f"{_against_the_paper(peak, last)}."
        )
    same = {"measure": "cosine", "comparison": "same layer", "centred": True, "states": "visual"}
    first, end = one(frame, **same, layer=0), one(frame, **same, layer=last)
    turn = {1: "rises", 0: "hardly moves", -1: "falls"}[apart(end, first)]
    said.append(
        f"Inside the model, the centred cosine of visual and text states of one layer {turn} from "
        f"{estimate(first)} to {estimate(end)}."
    )
    norms = _norms(result)
    said.append(
        f"By norm, entering tokens (median {number(norms.entry, 1)}) are nearest to the text "
        f"states of layer {norms.layer} (median {number(norms.text, 1)})"
        + (
            f", {_against_the_paper(norms.layer, last)}."
            if norms.close
            else ", but no layer is close."
        )
    )
    return said


def _against_the_paper(layer: int, last: int) -> str:
    return {
        "embedding": "the input embeddings, where the paper argues for intermediate layers",
        "shallow": "behind the input embeddings, but not in the middle that the paper argues for",
        "middle": "an intermediate layer, as the paper argues",
        "deep": "inside the model, but behind the middle that the paper argues for",
        "end": "the end of the model, where the paper argues for intermediate layers",
    }[depth(layer, last)]


def _claims(result: Result) -> list[Claim]:
    last = int(result.meta["layers"])
    peaks = [_peak(result, centred=centred) for centred in (False, True)]
    verdicts = {_in_the_middle(peak, last) for peak in peaks}
    norms = _norms(result)
    return [
        Claim(
            "Alive tokens align with intermediate layers rather than with the input embeddings "
            "(here: by direction).",
            ABSTRACT,
            f"nearest layer {peaks[0]} raw, {peaks[1]} centred, of 0 to {last}",
            verdicts.pop() if len(verdicts) == 1 else "undecided",
        ),
        Claim(
            "Norms of entering visual tokens match those of text in middle layers.",
            SECOND_HAND,
            f"nearest layer {norms.layer}: text {number(norms.text, 1)}, visual "
            f"{number(norms.entry, 1)}",
            _in_the_middle(norms.layer, last) if norms.close else "differs",
        ),
    ]


def _in_the_middle(layer: int, last: int) -> Verdict:
    place = depth(layer, last)
    if place == "middle":
        return "agrees"
    return "differs" if place in ("embedding", "end") else "undecided"


def _data(result: Result) -> str:
    meta = result.meta
    kind = "visual tokens" if meta["tokens"] == "visual" else f"{meta['tokens']} visual tokens"
    return (
        f"Here: {meta['visual_tokens']} {kind} of {meta['images']} image(s), "
        f"and {meta['text_tokens']} text tokens of {meta['texts']} sentences without images."
    )


ALIGNMENT = Analysis(
    name="alignment",
    run=lambda m: alignment(m.model, m.batches, m.texts, tokens=m.tokens, seed=m.seed),
    figure=draw_alignment,
    doing="comparing with text",
    order=50,
    heading="Which layer’s text states do visual tokens resemble?",
    method="For every visual token the largest cosine to any text state of a layer, averaged; once "
    "for the tokens as they enter the model, once for their own states at that layer. Centring "
    "takes each side’s mean away, since deep states share directions that inflate every cosine; "
    "random vectors show what chance gives.",
    caption="(a, b) Direction, with 95 % bands over images; circles mark the peaks. (c) Median "
    "norms with the quartiles of the tokens; layer l is the residual stream entering it.",
    findings=_findings,
    claims=_claims,
    data=_data,
    claims_order=30,
)
register(ALIGNMENT)
