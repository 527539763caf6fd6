"""What sparsity says: how many tokens are alive, and how the dead differ from them."""

from functools import partial
from typing import Any

import pandas as pd
from torch import Tensor

from ...lens.token_classes import CLASS_NAMES
from ..analysis import Analysis, Result, register
from ..claim import ABSTRACT, SECOND_HAND, Claim
from ..numbers_in_words import apart, estimate, listing, number, percent, points, share
from ..select_rows import one, select
from ..statistics import Evidence, Region, bootstrap_mean, bootstrap_pairs, evidence
from .figure import draw_sparsity
from .measure import sparsity

_EXPECTED = {"alive": 0.6, "dead": 0.3, "sink": 0.1}
_NEAR = 0.05  # of the expected share
_MORE_ALIKE = 0.1  # cosine
_STEADY = 0.95  # cosine


def _findings(result: Result) -> list[str]:
    rows = {name: _row(result.frame, "share", name) for name in CLASS_NAMES}
    present = [name for name in ("alive", "dead", "sink") if rows[name]["images"]]
    images = result.meta["images"]
    shares = listing(f"{share(rows[name])} are {name}" for name in present)
    said = [f"Of the visual tokens of {images} images, {shares}."]
    if undecided := result.meta.get("undecided"):
        by_now = listing(f"{share(rows[name])} would be {name}" for name in present)
        said = [
            f"Which visual tokens of {images} images are alive, dead or sink is undecided "
            f"({'; '.join(undecided)}). By what evidence there is, {by_now}."
        ]
    if missing := [name for name in ("sink", "dead") if name not in present]:
        kind = " of that kind" if len(missing) == 1 else ""
        said.append(
            f"No {listing(missing)} tokens were found: no direction{kind} recurs from image to "
            "image."
        )
    said += _common(result)
    if "dead" in present:
        said += _tested(result)
    if "dead" in present and "alive" in present:
        said += _contrast(result.frame)
    return said


def _common(result: Result) -> list[str]:
    """Of the alive tokens, those that recur."""
    found = select(result.frame, measure="common")
    if found.empty or not found["images"].iloc[0]:
        return []
    row = one(found)
    rows = [each for each in _evidence(result) if each["class"] == "common"]
    words = [f"“{each['words'].split(' ')[0]}”" for each in rows[:3]]
    return [
        f"{share(row)} of all tokens are common: alive, but on a direction that recurs from image "
        f"to image and carries something{f', such as {listing(words)}' if words else ''}."
    ]


def _tested(result: Result) -> list[str]:
    """Whether the causal test was taken, and what it says of dead tokens."""
    rows = [each for each in _evidence(result) if each["class"] == "dead"]
    tested = [each for each in rows if each.get("verdict")]
    if not rows:
        return []
    if not tested:
        return [
            "That dead tokens carry nothing rests on recurrence and on their nearest words; the "
            "causal test was not taken."
        ]
    same = sum(each["verdict"] == "no change" for each in tested)
    most = max(tested, key=lambda each: each["token_share"])
    return [
        f"Exchanged between images, tokens of {same} of {len(tested)} dead directions do not "
        f"change the output: those of the largest by {number(most['change'], 4)} nats, as many "
        f"other tokens by {number(most['others_change'], 4)}."
    ]


def _evidence(result: Result) -> list[dict[str, Any]]:
    """Rows of evidence on directions; none where markers are ids or not known."""
    return [row for row in result.meta.get("evidence") or () if "word_cosine" in row]


def _table(result: Result) -> pd.DataFrame | None:
    """What each direction's class rests on."""
    rows = [
        {
            "class": row["class"] + ", undecided" * bool(row["undecided"]),
            "because it recurs and": row["why"],
            "in images": percent(row["image_share"]),
            "of tokens": percent(row["token_share"]),
            "nearest words": row["words"],
            "attention from text": _known(row, "attention_from_text", " × even"),
            "exchanged between images": row.get("verdict") or "not tested",
            "change (nats)": _known(row, "change"),
            "of as many others": _known(row, "others_change"),
        }
        for row in _evidence(result)
    ]
    return pd.DataFrame(rows) if rows else None


def _known(row: dict[str, Any], name: str, unit: str = "") -> str:
    value = row.get(name)
    return "–" if value is None else number(value, 2 if unit else 4) + unit


def _contrast(frame: pd.DataFrame) -> list[str]:
    dead, alive = (_row(frame, "cosine of tokens", name) for name in ("dead", "alive"))
    more = {1: "far more alike", 0: "not clearly more alike", -1: "less alike"}[apart(dead, alive)]
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
    found = []
    undecided = "; undecided" * bool(result.meta.get("undecided"))
    for name, expected in _EXPECTED.items():
        row = _row(result.frame, "share", name)
        about = f"About {100 * expected:.0f} %"
        found.append(
            Claim(
                f"{about} of visual tokens are alive."
                if name == "alive"
                else f"{about} are {name} tokens.",
                ABSTRACT if name == "alive" else SECOND_HAND,
                (share(row) if row["images"] else f"none found, {share(row)}") + undecided,
                evidence=None
                if undecided
                else _of_images(
                    result,
                    result.tensors["shares"][:, CLASS_NAMES.index(name)],
                    Region(expected - _NEAR, expected + _NEAR),
                    (0.0, 1.0),
                ),
                agrees_if=f"the share lies within {points(_NEAR).removeprefix('+')} of it",
            )
        )
    both = all(_row(result.frame, "share", name)["images"] for name in ("dead", "alive"))
    if both and not undecided:
        found += _dead_tokens(result)
    return found


def _of_images(
    result: Result, values: Tensor, region: Region, bounds: tuple[float, float]
) -> Evidence:
    """Evidence from one number per image; NaN where an image has none."""
    numbers = values.double().numpy()
    interval = partial(bootstrap_mean, numbers, bounds=bounds)
    return evidence(lambda level, times: interval(level=level, times=times), region, len(numbers))


def _dead_tokens(result: Result) -> list[Claim]:
    frame, at = result.frame, CLASS_NAMES.index
    dead, alive = (_row(frame, "cosine of tokens", name) for name in ("dead", "alive"))
    of_pairs = result.tensors["cosines"].double().numpy()
    apart_by = of_pairs[at("dead")] - of_pairs[at("alive")]
    curve = _stability(frame, "dead")["value"]
    least = result.tensors["stability"][:, :, at("dead")].amin(1)
    return [
        Claim(
            "Dead tokens are much alike in all images.",
            SECOND_HAND,
            f"mean cosine {estimate(dead)}, alive {estimate(alive)}",
            evidence=evidence(
                lambda level, times: bootstrap_pairs(
                    apart_by, bounds=(-2.0, 2.0), level=level, times=times
                ),
                Region(low=_MORE_ALIKE),
                len(of_pairs[0]),
            ),
            agrees_if="their cosine between images is larger than that of alive tokens, by at "
            f"least {_MORE_ALIKE}",
        ),
        Claim(
            "Dead tokens hardly change from layer to layer.",
            SECOND_HAND,
            f"cosine {number(curve.min())} to {number(curve.max())}, by layer",
            evidence=_of_images(result, least, Region(low=_STEADY), (-1.0, 1.0)),
            agrees_if=f"an image’s least cosine of all layers is {_STEADY} or more, on average",
        ),
    ]


SPARSITY = Analysis(
    name="sparsity",
    run=lambda m: sparsity(m.model, m.batches, markers=m.markers, seed=m.seed),
    figure=draw_sparsity,
    doing="profiling the classes",
    needs=("markers",),
    order=40,
    passes=lambda e: 2 * e.images,
    heading="How many tokens are alive?",
    method="A token is sink or dead when it lies close to a direction that recurs from image to "
    "image: a sink by its norm before the projector or its turn to the first token, dead when the "
    "direction carries no word, and nothing is lost where its tokens are exchanged between images. "
    "All others are alive; those on a direction that recurs but carries something are called "
    "common. Similarity is the mean cosine over pairs of different images; stability is the cosine "
    "of a token’s residual stream before and after a layer.",
    caption="(a) Share of the classes. (b) Mean norm as tokens enter the language model. (c) "
    "Similarity between images, of tokens and of class means. (d) Stability at every layer. Lines "
    "and bands are 95 % intervals over images.",
    findings=_findings,
    table=_table,
    claims=_claims,
    claims_order=10,
)
register(SPARSITY)
