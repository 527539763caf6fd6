"""What probes say: where labels can be read, and whether beyond labels that mean nothing."""

from math import isnan

from ..analysis import Analysis, Result, register
from ..numbers_in_words import counted, listing, p_value, percent, points
from .figure import draw_probes
from .measure import DOING

_SURE = 0.05


def _findings(result: Result) -> list[str]:
    frame = result.frame
    best = max(frame.to_dict("records"), key=lambda row: float(row["selectivity"]))
    ends = ""
    if not isnan(best["selectivity_low"]):
        low, high = (100 * best[f"selectivity_{end}"] for end in ("low", "high"))
        ends = f" ({low:+.1f} to {high:+.1f})".replace("-", "−")
    said = [
        f"A linear probe names the label of {percent(best['accuracy'])} of tokens of unseen images "
        f"at layer {int(best['layer'])}, and of {percent(best['control'])} where the labels are in "
        f"another order: {points(best['selectivity'])}{ends}; the most frequent label is that of "
        f"{percent(best['chance'])}."
    ]
    sure = frame[(frame["p_holm"] <= _SURE) & (frame["selectivity"] > 0)]
    n = counted(len(frame), "layer")
    if sure.empty:
        said.append(f"At none of {n} that is shown to be more than the control (Holm).")
    else:
        layers = listing(str(layer) for layer in sure["layer"])
        largest = p_value(float(sure["p_holm"].max()))
        said.append(f"More than the control at layer {layers} of {n} ({largest} at most, Holm).")
    return said


PROBES = Analysis(
    name="probes",
    run=None,
    figure=draw_probes,
    doing=DOING,
    order=70,
    heading="What can be read from the states linearly?",
    method="Logistic regressions on standardised states are fitted on some images and judged on "
    "others. The control has the same labels in another order within each image.",
    caption="Share of tokens whose label a linear probe names, on images it has not seen, with the "
    "labels and with labels in another order; bands are 95 % intervals over images.",
    findings=_findings,
)
register(PROBES)
