"""What sparsity says: how many tokens are alive, and how the dead differ from them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ...lens.token_classes import CLASS_NAMES
from ..analysis import Analysis, Result, register
from ..claim import ABSTRACT, SECOND_HAND, Claim, Verdict, by_sign
from ..numbers_in_words import apart, estimate, listing, number, share
from ..rows import one, select
from .figure import draw_sparsity
from .measure import sparsity

_NEAR = 0.05  # how far outside the interval an expected share may lie


def _findings(result: Result) -> list[str]:
    rows = {name: _row(result.frame, "share", name) for name in CLASS_NAMES}
    present = [name for name in ("alive", "dead", "sink") if rows[name]["images"]]
    images = result.meta["images"]
    shares = listing(f"{share(rows[name])} are {name}" for name in present)
    said = [f"Of the visual tokens of {images} images, {shares}."]
    if missing := [name for name in ("sink", "dead") if name not in present]:
        kind = " of that kind" if len(missing) == 1 else ""
        said.append(
            f"No {listing(missing)} tokens were found: no direction{kind} recurs from image to "
            "image."
        )
    if "dead" in present and "alive" in present:
        said += _contrast(result.frame)
    return said


def _contrast(frame: pd.DataFrame) -> list[str]:
    dead, alive = (_row(frame, "cosine of tokens", name) for name in ("dead", "alive"))
    more = {1: "far more alike", 0: "about as alike", -1: "less alike"}[apart(dead, alive)]
    said = [
        f"Dead tokens of different images are {more} than alive ones: mean cosine "
        f"{estimate(dead)} against {estimate(alive)}."
    ]
    dead, alive = (_row(frame, "norm", name) for name in ("dead", "alive"))
    larger = {1: "larger", 0: "not clearly different", -1: "smaller"}[apart(dead, alive)]
    said.append(
        f"Norms of dead tokens are {larger}: {estimate(dead, 1)} against {estimate(alive, 1)}."
    )
    least = _stability(frame, "dead").sort_values("value", kind="stable").iloc[0]
    said.append(
        f"From layer to layer dead tokens keep a cosine of at least {number(least['value'])} "
        f"(least at layer {least['layer']}); for alive tokens the least is "
        f"{number(_stability(frame, 'alive')['value'].min())}."
    )
    return said


def _row(frame: pd.DataFrame, measure: str, name: str) -> dict[str, Any]:
    return one(frame, **{"measure": measure, "class": name})


def _stability(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    return select(frame, **{"measure": "stability", "class": name})


def _claims(result: Result) -> list[Claim]:
    rows = {name: _row(result.frame, "share", name) for name in CLASS_NAMES}
    alive = rows["alive"]
    about = "About 60 % of visual tokens are alive."
    found = [Claim(about, ABSTRACT, share(alive), _near(alive, 0.6))]
    for name, expected in (("dead", 0.3), ("sink", 0.1)):
        row = rows[name]
        here = share(row) if row["images"] else "none found"
        text = f"About {100 * expected:.0f} % are {name} tokens."
        verdict = _near(row, expected) if row["images"] else "differs"
        found.append(Claim(text, SECOND_HAND, here, verdict))
    if rows["dead"]["images"] and rows["alive"]["images"]:
        found += _dead_tokens(result.frame)
    return found


def _near(row: Mapping[str, Any], expected: float) -> Verdict:
    if row["low"] != row["low"]:
        return "unclear"
    return "agrees" if row["low"] - _NEAR <= expected <= row["high"] + _NEAR else "differs"


def _dead_tokens(frame: pd.DataFrame) -> list[Claim]:
    dead, alive = (_row(frame, "cosine of tokens", name) for name in ("dead", "alive"))
    curve = _stability(frame, "dead")["value"]
    steady: Verdict = (
        "agrees" if curve.min() > 0.95 else "partly" if curve.mean() > 0.9 else "differs"
    )
    return [
        Claim(
            "Dead tokens are much alike in all images.",
            SECOND_HAND,
            f"mean cosine {estimate(dead)}, alive {estimate(alive)}",
            by_sign(apart(dead, alive)),
        ),
        Claim(
            "Dead tokens hardly change from layer to layer.",
            SECOND_HAND,
            f"cosine {number(curve.min())} to {number(curve.max())}, by layer",
            steady,
        ),
    ]


SPARSITY = Analysis(
    name="sparsity",
    run=lambda m: sparsity(m.model, m.batches, markers=m.markers, seed=m.seed),
    figure=draw_sparsity,
    doing="profiling the classes",
    needs=("markers",),
    order=40,
    heading="How many tokens are alive?",
    method="A token is sink or dead when it lies close to a direction that recurs from image to "
    "image, and alive otherwise. Similarity is the mean cosine over pairs of different images; "
    "stability is the cosine of a token’s residual stream before and after a layer.",
    caption="(a) Share of the classes. (b) Mean norm as tokens enter the language model. (c) "
    "Similarity between images, of tokens and of class means. (d) Stability at every layer. Lines "
    "and bands are 95 % intervals over images.",
    findings=_findings,
    claims=_claims,
    claims_order=10,
)
register(SPARSITY)
