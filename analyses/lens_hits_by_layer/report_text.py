"""What lens hits say: whether first words are right at the entry, and where a lens is best."""

from typing import Any

from torch import Tensor

from ..analysis import Analysis, Result, register
from ..claim import ABSTRACT, SECOND_HAND, Claim
from ..numbers_in_words import apart, depth, difference, points, share
from ..report_inputs import Material
from ..select_rows import one, select
from ..statistics import Estimate, Evidence, Region, bootstrap_mean, evidence
from .figure import draw_lens_hits
from .measure import lens_hits, middle_k

_EARLY = ("embedding", "shallow", "middle")
_MARGIN = 0.05  # share of tokens: what counts as more


def _findings(result: Result) -> list[str]:
    frame = result.frame
    lenses, k, last = frame["lens"].unique(), middle_k(frame), int(frame["layer"].max())
    said = []
    for lens in lenses:
        own = one(frame, lens=lens, layer=0, k=1, truth="own")
        chance = one(frame, lens=lens, layer=0, k=1, truth="permuted")
        verdict = {
            1: "so the words come from the patch itself",
            0: "which is not clearly different",
            -1: "which is even more: read this way, the tokens say nothing yet",
        }[apart(own, chance)]
        said.append(
            f"As tokens enter the language model, the first word of {lens} names what the patch "
            f"shows for {share(own)} of {own['tokens']} patches. With the truth of other patches "
            f"it would be {share(chance)}, {verdict}."
        )
    for lens in lenses:
        curve = select(frame, lens=lens, k=k, truth="own")
        best = int(curve.sort_values("value", ascending=False, kind="stable")["layer"].iloc[0])
        top, end = one(curve, layer=best), one(curve, layer=last)
        said.append(
            f"Among its first {k} words, {lens} is right most often at layer {best}, {share(top)}"
            + (f", against {share(end)} after the last layer." if best != last else ".")
        )
    return said


def _claims(result: Result) -> list[Claim]:
    frame = result.frame
    names, layers = list(frame["lens"].unique()), [int(at) for at in frame["layer"].unique()]
    if not {"EmbedLens", "LogitLens"} <= set(names):
        return []
    own = one(frame, lens="EmbedLens", layer=0, k=1, truth="own")
    chance = one(frame, lens="EmbedLens", layer=0, k=1, truth="permuted")
    embed, logit, k = names.index("EmbedLens"), names.index("LogitLens"), middle_k(frame)
    first, middle = result.meta["ks"].index(1), result.meta["ks"].index(k)
    early = [i for i, at in enumerate(layers) if depth(at, max(layers)) in _EARLY]
    hits, others = (result.tensors[name].double() for name in ("own", "permuted"))
    by_chance = hits[embed, layers.index(0), first] - others[embed, layers.index(0), first]
    better = (hits[embed, early, middle] - hits[logit, early, middle]).mean(0)
    more = _difference(result, better)
    margin = points(_MARGIN).removeprefix("+")
    return [
        Claim(
            "Visual tokens already carry meaning before the language model, such as objects and "
            "colours.",
            ABSTRACT,
            f"right first word {share(own)}, with the truth of other patches {share(chance)}",
            evidence=_evidence(result, by_chance),
            agrees_if=f"the first word is right more often, by at least {margin}",
        ),
        Claim(
            "EmbedLens reads shallow and middle layers better than LogitLens.",
            SECOND_HAND,
            f"{difference(more.row(name='difference'))} on average over layers 0 to "
            f"{layers[early[-1]]}, among the first {k} words",
            evidence=_evidence(result, better),
            agrees_if=f"it is right more often, by at least {margin}, on average over the first "
            "three quarters of the depth",
        ),
    ]


def _difference(result: Result, by_token: Tensor, **more: Any) -> Estimate:
    """The mean of a difference of tokens, with its interval over images."""
    groups = result.tensors["image"].numpy()
    return bootstrap_mean(by_token.numpy(), groups, bounds=(-1.0, 1.0), **more)


def _evidence(result: Result, by_token: Tensor) -> Evidence:
    return evidence(
        lambda level, times: _difference(result, by_token, level=level, times=times),
        Region(low=_MARGIN),
        int(result.meta["images"]),
    )


def _run(material: Material) -> Result:
    assert material.truth is not None
    (batch,) = material.batches
    return lens_hits(material.model, batch, material.truth.words, seed=material.seed)


LENS_HITS = Analysis(
    name="lens_hits",
    run=_run,
    figure=draw_lens_hits,
    doing="comparing with what is there",
    needs=("truth",),
    order=20,
    heading="Are those words right?",
    method="A token counts as read rightly when one of the lens’ first k words names the colour or "
    "kind of the object in its patch. The control gives every token the truth of "
    "every other one in turn. LogitLens reads what the model would predict from the same state.",
    caption="(a) Tokens read rightly as they enter the model; vertical lines are 95 % intervals "
    "over images, short horizontal lines the permuted truth. (b) The same at every layer; layer l "
    "is the residual stream entering it, the last one is before the final norm.",
    findings=_findings,
    claims=_claims,
    claims_order=20,
)
register(LENS_HITS)
