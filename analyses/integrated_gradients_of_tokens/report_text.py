"""What integrated gradients say: how much the image adds, and how few tokens hold it."""

from collections.abc import Mapping
from math import isnan
from typing import Any

import numpy as np

from ..analysis import Analysis, Result, register
from ..numbers_in_words import number, p_value, percent
from .figure import draw_integrated_gradients
from .measure import DOING

SURE = 0.05


def _findings(result: Result) -> list[str]:
    meta, frame = result.meta, result.frame
    unit = "nats" if meta["of"] == "logprob" else "of the logit"
    changes = np.array(meta["after"]) - np.array(meta["before"])
    gap = float(np.abs(meta["gaps"]).max())
    said = [
        f"From the baseline to the image the words asked for gain {number(changes.mean())} {unit} "
        f"in the mean{_ends(meta)}; the shares of the tokens sum to that within {number(gap, 3)}."
    ]
    positive = frame["value"].clip(lower=0)
    if positive.sum() > 0:
        tenth = positive.sort_values(ascending=False).head(max(1, len(frame) // 10)).sum()
        share = percent(float(tenth / positive.sum()))
        said.append(f"A tenth of the visual tokens holds {share} of what is gained.")
    return said


def _ends(meta: Mapping[str, Any]) -> str:
    """The interval of the mean, and whether it could be chance; nothing from too few images."""
    gain = meta.get("gain")
    if gain is None or isnan(gain["low"]):
        return ""
    chance = "" if gain["p"] <= SURE else ", which may be chance"
    return f" ({number(gain['low'])} to {number(gain['high'])}, {p_value(gain['p'])}{chance})"


INTEGRATED_GRADIENTS = Analysis(
    name="integrated_gradients",
    run=None,
    figure=draw_integrated_gradients,
    doing=DOING,
    order=76,
    heading="What is each visual token worth to the answer?",
    method="Gradients are integrated from a baseline to the visual tokens as they enter the "
    "language model, so that the shares of the tokens sum to what the image adds.",
    caption="Share of each visual token, at its place in the image.",
    findings=_findings,
)
register(INTEGRATED_GRADIENTS)
