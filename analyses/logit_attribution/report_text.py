"""What a logit's parts say: which heads and layers add most to it."""

from collections.abc import Mapping
from math import isnan
from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..numbers_in_words import counted, listing, number
from .figure import draw_logit_attribution
from .measure import DOING
from .parts import SURE, parts_over_images

_TOLD = 3
_NAMES = {
    "embedding": "what enters layer 0",
    "constant": "the biases of norm and head",
    "attention": "attention of layer {layer}",
    "attention bias": "the bias of attention in layer {layer}",
    "head": "head {head} of layer {layer}",
    "ffn": "the FFN of layer {layer}",
}


def _findings(result: Result) -> list[str]:
    frame = result.frame
    logits = result.tensors["logits"]
    n = len(logits)
    parts = parts_over_images(frame)
    largest = parts.reindex(parts["value"].abs().sort_values(ascending=False).index).head(_TOLD)
    told = listing(f"{_name(row)} ({_interval(row)})" for row in largest.to_dict("records"))
    what = "difference of two logits" if result.meta["against"] else "logit"
    mean = number(float(logits.mean()))
    said = [f"Of a {what} of {mean} in the mean of {n}, most is added by {told}."]
    if parts["low"].notna().any():
        sure = parts[parts["p_corrected"] <= SURE]
        images = counted(frame["image_group"].nunique(), "image")
        said.append(
            f"Over {images}, {len(sure)} of {counted(len(parts), 'part')} add something that is "
            "not chance, corrected for all of them."
            if len(sure)
            else f"Over {images}, none of {counted(len(parts), 'part')} stands out from chance, "
            "corrected for all of them."
        )
    heads = frame[frame["part"] == "head"]
    if not heads.empty:
        seen, all_ = (heads[column].sum() / n for column in ("visual", "value"))
        said.append(
            f"Heads add {number(all_)} in all, of which {number(seen)} comes from visual tokens."
        )
    return said


def _name(row: Mapping[Any, Any]) -> str:
    layer, head = ("" if pd.isna(row[key]) else int(row[key]) for key in ("layer", "head"))
    return _NAMES[row["part"]].format(layer=layer, head=head)


def _interval(row: Mapping[Any, Any]) -> str:
    ends = "" if isnan(row["low"]) else f"; {number(row['low'])} to {number(row['high'])}"
    return f"{number(row['value'])}{ends}"


LOGIT_ATTRIBUTION = Analysis(
    name="logit_attribution",
    run=None,
    figure=draw_logit_attribution,
    doing=DOING,
    order=75,
    heading="What adds to the answer's logit?",
    method="With the final norm held at its value, a logit is a sum over what enters layer 0, what "
    "each head brings from each token, and what each FFN adds. Only direct effects are in it.",
    caption="What parts of the model add to a logit, means over tokens: by layer, by head, and by "
    "head from visual tokens. Whiskers are 95 % intervals over images; dots mark heads that "
    "add something that is not chance.",
    findings=_findings,
)
register(LOGIT_ATTRIBUTION)
