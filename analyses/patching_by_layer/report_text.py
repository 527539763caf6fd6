"""What patching says: where the donor's answer comes along."""

from math import isnan

from ..analysis import Analysis, Result, register
from ..numbers_in_words import listing, number
from ..select_rows import select
from .figure import SURE, draw_patching
from .measure import DOING


def _findings(result: Result) -> list[str]:
    told = []
    for name in dict.fromkeys(result.frame["tokens"]):
        rows = select(result.frame, tokens=name)
        best = max(rows.to_dict("records"), key=lambda row: float(row["effect"]))
        low, high = best["effect_low"], best["effect_high"]
        ends = "" if isnan(low) else f" ({number(low)} to {number(high)})"
        told.append(f"{name} {number(best['effect'])}{ends} at layer {int(best['layer'])}")
    said = [f"The largest effects, of 1 for the donor’s whole answer: {listing(told)}."]
    if "p_corrected" in result.frame and result.frame["effect_low"].notna().any():
        sure, all_ = int((result.frame["p_corrected"] <= SURE).sum()), len(result.frame)
        some = f"{sure} of {all_} patches move" if sure else f"None of {all_} patches moves"
        said.append(f"{some} the answer by more than chance, corrected for all of them.")
    return said


PATCHING = Analysis(
    name="patching",
    run=None,
    figure=draw_patching,
    doing=DOING,
    order=77,
    heading="Where do states carry the answer?",
    method="States of a run on another image are written into a run, at one layer and one set of "
    "tokens at a time. The effect is how far the answer moves from its own to the donor’s.",
    caption="Effect of patching by layer and tokens: 0 changes nothing, 1 brings the donor’s "
    "answer; dots mark what is not chance.",
    findings=_findings,
)
register(PATCHING)
