"""What a logit's parts say: which heads and layers add most to it."""

from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..numbers_in_words import listing, number
from .figure import draw_logit_attribution
from .measure import DOING

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
    keys = ["part", "layer", "head"]
    means = frame.groupby(keys, dropna=False)[["value", "visual"]].sum() / n
    largest = means.reindex(means["value"].abs().sort_values(ascending=False).index).head(_TOLD)
    told = listing(f"{_name(key)} ({number(row['value'])})" for key, row in largest.iterrows())
    what = "difference of two logits" if result.meta["against"] else "logit"
    mean = number(float(logits.mean()))
    said = [f"Of a {what} of {mean} in the mean of {n}, most is added by {told}."]
    heads = frame[frame["part"] == "head"]
    if not heads.empty:
        seen, all_ = (heads[column].sum() / n for column in ("visual", "value"))
        said.append(
            f"Heads add {number(all_)} in all, of which {number(seen)} comes from visual tokens."
        )
    return said


def _name(key: Any) -> str:
    part, layer, head = key
    return _NAMES[part].format(
        layer="" if pd.isna(layer) else int(layer),
        head="" if pd.isna(head) else int(head),
    )


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
    "head from visual tokens.",
    findings=_findings,
)
register(LOGIT_ATTRIBUTION)
