"""What class profiles say: how alike, how long, how much looked at each class is."""

from functools import partial
from typing import Any

import numpy as np

from ...lens.token_classes import CLASS_NAMES
from ..analysis import Analysis, Result, register
from ..claim import SECOND_HAND, Claim
from ..numbers_in_words import estimate, listing, number, percent, share
from ..select_rows import select
from ..statistics import Region, bootstrap_mean, bootstrap_pairs, evidence
from .figure import DEAD_SHARE, SINK_COSINE, draw_class_profiles
from .measure import KINDS, class_profiles


def _findings(result: Result) -> list[str]:
    frame = result.frame
    present = [n for n in CLASS_NAMES if not select(frame, **{"measure": "norm", "class": n}).empty]
    said = [_norms(result, present)]
    if "attention share" in result.tensors:
        shares = listing(
            f"{name} tokens {share(_mean_share(result, name))}" for name in reversed(present)
        )
        said.append(
            f"Of the attention that text gives to visual tokens, on average over layers, {shares} "
            "get."
        )
    if "cosine between images" in set(frame["measure"]):
        alike = listing(
            f"{name} {estimate(row)}"
            for name in reversed(present)
            if (row := _row(result, "cosine between images", name, 0)) is not None
        )
        said.append(f"Cosine between images of a class’s mean token, at the entry: {alike}.")
    said += _turns(result, present)
    if result.meta["missing"]:
        said.append(f"Some measures could not be taken: {result.meta['missing']}.")
    return said


def _norms(result: Result, present: list[str]) -> str:
    enter = listing(
        f"{name} {estimate(row, 1)}"
        for name in (*reversed(present), "text")
        if (row := _row(result, "norm", name, 0)) is not None
    )
    return f"Mean norms at the entry: {enter}."


def _turns(result: Result, present: list[str]) -> list[str]:
    said = []
    for name in present:
        rows = select(result.frame, **{"measure": "cosine to first token", "class": name})
        if not rows.empty:
            most = rows.sort_values("value", ascending=False, kind="stable").iloc[0]
            part = {"ffn": "the FFN of ", "attention": "the attention of "}.get(most["part"], "")
            said.append(f"{name} {number(most['value'])}, behind {part}layer {most['layer']}")
    return [f"The largest mean cosine to the first token: {listing(said)}."] if said else []


def _row(result: Result, measure: str, name: str, layer: int) -> dict[str, Any] | None:
    rows = select(result.frame, **{"measure": measure, "class": name, "layer": layer})
    return None if rows.empty else {str(k): v for k, v in rows.iloc[0].items()}


def _shares(result: Result, name: str) -> np.ndarray:
    """An image's mean over layers of what a class gets, ``[image]``."""
    every = result.tensors["attention share"].double().numpy()[:, :, KINDS.index(name)]
    counted = (~np.isnan(every)).sum(1)
    means: np.ndarray = np.where(counted > 0, np.nansum(every, 1) / np.fmax(counted, 1), np.nan)
    return means


def _mean_share(result: Result, name: str) -> dict[str, float]:
    return bootstrap_mean(_shares(result, name), bounds=(0.0, 1.0)).row()


def _claims(result: Result) -> list[Claim]:
    images, found = int(result.meta["images"]), []
    classes = set(select(result.frame, measure="norm")["class"])
    if "dead" in classes and "attention share" in result.tensors:
        interval = partial(bootstrap_mean, _shares(result, "dead"), bounds=(0.0, 1.0))
        found.append(
            Claim(
                "Dead tokens get less than 8 % of the attention between text and image.",
                SECOND_HAND,
                f"{share(_mean_share(result, 'dead'))} of what text gives to visual tokens",
                evidence=evidence(
                    lambda level, times: interval(level=level, times=times),
                    Region(high=DEAD_SHARE),
                    images,
                ),
                agrees_if=f"their share, on average over layers, is at most {percent(DEAD_SHARE)}",
            )
        )
    row = _row(result, "cosine between images", "sink", 0)
    if row is not None:
        matrix = result.tensors["cosine between images"].double().numpy()
        pairs = partial(bootstrap_pairs, matrix[0, KINDS.index("sink")])
        found.append(
            Claim(
                "Sink tokens are the same in all images: their cosine is above .99.",
                SECOND_HAND,
                f"cosine of mean sink tokens {estimate(row, 3)}",
                evidence=evidence(
                    lambda level, times: pairs(level=level, times=times),
                    Region(low=SINK_COSINE),
                    int(row["images"]),
                ),
                agrees_if=f"the cosine between images of mean sink tokens is {SINK_COSINE} or more",
            )
        )
    return found


CLASS_PROFILES = Analysis(
    name="class_profiles",
    run=lambda m: class_profiles(
        m.model, m.batches, markers=m.markers, seed=m.seed, progress=m.progress
    ),
    figure=draw_class_profiles,
    doing="profiling classes by layer",
    needs=("markers",),
    by_default=False,
    headline=False,
    order=46,
    heading="What sets the classes apart, layer by layer?",
    method="Means over the tokens of a class, and over images. Attention is the mean over heads, "
    "from text behind the image; its share is of what visual tokens get together. The entropy of "
    "states is that of the spectrum of a class’s directions, 0 where all are alike.",
    caption="By layer: (a) similarity between images of class means, (b) norms, (c) cosine to the "
    "first token behind the FFN, (d) what a layer adds over the norm before it, (e) share of the "
    "attention that text gives to visual tokens, (f) variety of a class’s states. Bands are 95 % "
    "intervals over images; dashed, the paper’s numbers as others report them.",
    findings=_findings,
    claims=_claims,
    claims_order=46,
)
register(CLASS_PROFILES)
