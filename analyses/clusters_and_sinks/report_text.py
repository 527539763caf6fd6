"""What the partition says: whether there are clusters, and who is a sink by which mechanism."""

import numpy as np

from ..analysis import Analysis, Result, register
from ..claim import SECOND_HAND, Claim
from ..numbers_in_words import counted, listing, number, percent, share
from ..select_rows import one, select
from ..statistics import Region, evidence, proportion
from .figure import draw_partition
from .measure import MASSIVE, NORM, TURN, partition

_CLAIMED = (1, "ffn")
_MOST = 0.5  # of the tokens that turn


def _findings(result: Result) -> list[str]:
    return [_sinks(result), *_turn(result), _clusters(result), *_overlaps(result)]


def _sinks(result: Result) -> str:
    shares = select(result.frame, measure="share")
    told = {
        NORM: "stand out by their norm before the projector",
        TURN: "turn to the direction of the first token",
        MASSIVE: "have massive entries",
    }
    said = listing(
        f"{share(one(shares, name=name))} {what}"
        for name, what in told.items()
        if name in set(shares["name"])
    )
    unread = "" if NORM in set(shares["name"]) else " Norms before the projector could not be read."
    return f"Of {counted(result.meta['tokens'], 'visual token')}, {said}.{unread}"


def _turn(result: Result) -> list[str]:
    turns = select(result.frame, measure="turns")
    if turns.empty:
        return []
    rows = turns.sort_values("value", ascending=False, kind="stable")
    most = {str(name): value for name, value in rows.iloc[0].items()}
    behind = "" if most["part"] == "layer" else f"the {_called(most['part'])} of "
    return [f"{share(most)} of those that turn do so in {behind}layer {most['layer']}."]


def _called(part: str) -> str:
    return {"ffn": "FFN"}.get(part, part)


def _clusters(result: Result) -> str:
    rows = select(result.frame, measure="silhouette")
    table = rows.pivot(index="clusters", columns="name", values="value")
    best = table.iloc[int(np.argmax(table["tokens"] - table["cloud"]))]
    observed, cloud = (number(float(best[name])) for name in ("tokens", "cloud"))
    against = f"silhouette {observed}, of clouds without clusters up to {cloud}"
    found = select(result.frame, measure="cluster share")
    if len(found) < 2:
        return f"No clusters stand out among the tokens as they enter ({against})."
    first = one(found, name="cluster 1")
    alike = one(result.frame, measure="cluster cosine", name="cluster 1")
    words = result.meta["cluster_words"]
    near = f", near {listing(f'“{word}”' for word in words[0])}" if words else ""
    return (
        f"{counted(len(found), 'cluster')} stand out ({against}). The largest holds "
        f"{share(first)} of the tokens, with a cosine of {number(alike['value'])} between "
        f"images{near}."
    )


def _overlaps(result: Result) -> list[str]:
    rows = select(result.frame, measure="overlap")
    kinds = (NORM, TURN, MASSIVE)
    mine = rows[rows["name"].isin(kinds) & rows["other"].isin(kinds)]
    if mine.empty:
        return []
    said = listing(
        f"{percent(row['value'])} of those by {row['name']} are so by {row['other']}"
        for _, row in mine.iterrows()
    )
    return [f"Of the sinks, {said}."]


def _claims(result: Result) -> list[Claim]:
    turned = result.tensors["turned"].numpy()
    layer, part = _CLAIMED
    called = f"{part} {layer}"
    if called not in result.meta["boundaries"]:
        return []
    at, turning = result.meta["boundaries"].index(called), turned >= 0
    here, found = "no token turns to the first token", None
    if turning.any():
        there = (turned[turning] == at).astype(np.float64)[:, None]
        image = result.tensors["image"].numpy()[turning]
        row = one(result.frame, measure="turns", layer=layer, part=part)
        here = f"{share(row)} of the tokens that turn do so there"
        found = evidence(
            lambda level, times: proportion(there, image, level=level, times=times),
            Region(low=_MOST),
            len(np.unique(image)),
        )
    return [
        Claim(
            "Sinks of the language model take the first token’s direction in the FFN of its second "
            "layer.",
            SECOND_HAND,
            here,
            evidence=found,
            agrees_if=f"at least {percent(_MOST)} of the tokens that turn do so there",
        )
    ]


PARTITION = Analysis(
    name="partition",
    run=lambda m: partition(
        m.model, m.batches, markers=m.markers, seed=m.seed, progress=m.progress
    ),
    figure=draw_partition,
    doing="telling sinks and clusters apart",
    by_default=False,
    headline=False,
    order=45,
    heading="Which tokens are alike, and how do sinks come about?",
    method="Clusters are those of k-means on the directions of tokens as they enter; there are as "
    "many as stand out most of clouds with the same spread and no clusters. A token is a sink by "
    "its norm before the projector, by turning to the first token’s direction behind some sublayer "
    "with a long state, or by a massive entry; each criterion sees one token and not the others.",
    caption="(a) Mean silhouette by number of clusters; dashed, the best of clouds without "
    "clusters. (b) Share of tokens by criterion, with 95 % intervals over images. (c) Cosine to "
    "the first token behind every sublayer, of tokens that turn and of others.",
    findings=_findings,
    claims=_claims,
    claims_order=45,
)
register(PARTITION)
