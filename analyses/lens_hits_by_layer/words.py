"""What lens hits say: whether first words are right at the entry, and where a lens is best."""

from ..analysis import Analysis, Result, register
from ..claim import ABSTRACT, SECOND_HAND, Claim, Verdict, by_sign
from ..numbers_in_words import apart, share
from ..report_inputs import Material
from ..rows import one, select
from .figure import draw_lens_hits
from .measure import lens_hits, middle_k


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
    if not {"EmbedLens", "LogitLens"} <= set(frame["lens"]):
        return []
    own = one(frame, lens="EmbedLens", layer=0, k=1, truth="own")
    chance = one(frame, lens="EmbedLens", layer=0, k=1, truth="permuted")
    k = middle_k(frame)
    half = int(frame["layer"].max()) // 2
    better = [
        apart(
            one(frame, lens="EmbedLens", layer=layer, k=k, truth="own"),
            one(frame, lens="LogitLens", layer=layer, k=k, truth="own"),
        )
        for layer in range(half + 1)
    ]
    lenses: Verdict = "agrees" if min(better) == 1 else "partly" if max(better) == 1 else "differs"
    return [
        Claim(
            "Visual tokens already carry meaning before the language model, such as objects and "
            "colours.",
            ABSTRACT,
            f"right first word {share(own)}, permuted truth {share(chance)}",
            by_sign(apart(own, chance)),
        ),
        Claim(
            "EmbedLens reads shallow and middle layers better than LogitLens.",
            SECOND_HAND,
            f"clearly better at {better.count(1)} of the first {len(better)} layers (top {k})",
            lenses,
        ),
    ]


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
    "kind of the object in its patch. The control gives every token the truth of another one, "
    "drawn at random. LogitLens reads what the model would predict from the same state.",
    caption="(a) Tokens read rightly as they enter the model; vertical lines are 95 % intervals "
    "over images, short horizontal lines the permuted truth. (b) The same at every layer; layer l "
    "is the residual stream entering it, the last one is before the final norm.",
    findings=_findings,
    claims=_claims,
    claims_order=20,
)
register(LENS_HITS)
