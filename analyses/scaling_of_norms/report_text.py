"""What norm scaling says: how text-like the first layer's update becomes, and what answers lose."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..claim import SECOND_HAND, Claim
from ..comparison_of_plans.measure_names import measure_name
from ..comparison_of_plans.named_plans import UNTOUCHED
from ..comparison_of_plans.outcomes import DOING
from ..comparison_of_plans.report_text import amount, change, told_reference
from ..numbers_in_words import counted, estimate, listing, number, percent
from ..select_rows import one, select
from ..statistics import Evidence
from ..sweep_over_layers.condition import ALL_VISUAL
from ..sweep_over_layers.conditions_in_words import (
    beyond_control,
    table_of_changes,
    told_change,
    told_verdicts,
)
from ..sweep_over_layers.run_on_report import run_on_report
from .figure import draw_norm_scaling
from .first_updates import TEXT
from .measure import MATCHED, PAPER_FACTOR, norm_scaling
from .update_rows import NEARNESS, UNSCALED

PAPER_SCALE = f"× {PAPER_FACTOR:g}"


def _metric(result: Result) -> str:
    metrics = result.meta["margins"]
    return "accuracy" if "accuracy" in metrics else str(next(iter(metrics)))


def _findings(result: Result) -> list[str]:
    metric, rows = _metric(result), select(result.frame, task="all")
    sets = list(result.meta["shares"])
    said = [_update(rows, tokens) for tokens in sets]
    mine, margin = select(rows, metric=metric), result.meta["margins"][metric]
    mine = mine[mine["condition"] != UNTOUCHED]
    if metric == "accuracy":
        said.append(told_reference(result))
    for tokens in sets:
        of = select(mine, tokens=tokens)
        named = [
            row for row in of.to_dict("records") if row["scale"] in (PAPER_SCALE, MATCHED)
        ] or of.to_dict("records")[:1]
        first, *more = ((row["scale"], told_change(row, metric, margin)) for row in named)
        others = "".join(f"; {scale}, by {told}" for scale, told in more)
        said.append(
            f"When {_called(result, tokens)} are scaled {first[0]}, {measure_name(result, metric)} "
            f"changes by {first[1]}{others}. "
            f"Of {counted(len(of), 'scale')}: {told_verdicts(of, 'scale')}."
        )
    behaviour = rows[rows["metric"].isin(result.meta["margins"])]
    told_by = behaviour["tokens"].astype(object) + " " + behaviour["scale"].astype(object)
    if control := beyond_control(result, behaviour.assign(told=told_by), "told"):
        said.append(control)
    return said


def _called(result: Result, tokens: str) -> str:
    if tokens == ALL_VISUAL:
        return "all visual tokens"
    return f"{tokens} tokens ({percent(result.meta['shares'][tokens])} of the visual ones)"


def _update(rows: pd.DataFrame, tokens: str) -> str:
    """Norms, and what the first layer adds, as they are and scaled, beside the text."""

    def told(metric: str, scale: str, of: str = tokens) -> str:
        return _value(_row(rows, metric, of, scale))

    ratio = (
        _row(rows, "norm", tokens, UNSCALED)["value"] / _row(rows, "norm", TEXT, UNSCALED)["value"]
    )
    known = set(select(rows, tokens=tokens, metric="update")["scale"])
    scales = [UNSCALED, *(scale for scale in (PAPER_SCALE, MATCHED) if scale in known)]
    updates = listing(f"{told('update', scale)} {_as(scale)}" for scale in scales)
    cosines = listing(f"{told('cosine to entry', scale)} {_as(scale)}" for scale in scales)
    name = "Visual tokens" if tokens == ALL_VISUAL else f"Tokens that are {tokens}"
    return (
        f"{name} enter with {number(ratio)} times the norm of text. The first layer adds to them, "
        f"over their norm, {updates}, and {told('update', UNSCALED, TEXT)} to text; the cosine of "
        f"what leaves and what enters is {cosines}, and {told('cosine to entry', UNSCALED, TEXT)} "
        "for text."
    )


def _row(rows: pd.DataFrame, metric: str, tokens: str, scale: str) -> dict[str, Any]:
    return one(rows, metric=metric, tokens=tokens, scale=scale)


def _value(row: Mapping[Any, Any]) -> str:
    return estimate({"value": row["value"], "low": row["value_low"], "high": row["value_high"]})


def _as(scale: str) -> str:
    return "as they are" if scale == UNSCALED else f"scaled {scale}"


def _claims(result: Result) -> list[Claim]:
    rows = select(result.frame, task="all", tokens=ALL_VISUAL)
    found = []
    scaled = select(rows, scale=PAPER_SCALE)
    if len(scaled):
        near = one(scaled, metric=NEARNESS)
        before = one(rows, metric=NEARNESS, scale=UNSCALED)
        found.append(
            Claim(
                "Visual tokens scaled by 0.01 are transformed like text in the shallow layers.",
                SECOND_HAND,
                "in the first layer their cosine of exit and entry is "
                f"{_value(near)} from the text’s, and {_value(before)} as they are",
                evidence=Evidence.from_row(near),
                agrees_if="it comes nearer to the text’s than it is unscaled",
            )
        )
    if len(scaled) and "accuracy" in result.meta["margins"]:
        row, name = one(scaled, metric="accuracy"), measure_name(result, "accuracy")
        found.append(
            Claim(
                "With visual tokens scaled by 0.01 answers get worse.",
                SECOND_HAND,
                f"{change(row, 'accuracy')} of {name}",
                evidence=_loss(row),
                agrees_if=f"{name} falls by more than "
                f"{amount(result.meta['margins']['accuracy'], 'accuracy')}",
            )
        )
    return found


def _loss(row: dict[str, Any]) -> Evidence:
    """That a change lies below the margin: what speaks for it is what speaks against none."""
    within = Evidence.from_row(row)
    if row["difference"] < 0:
        return Evidence(within.differs, within.agrees, within.decided_at)
    return Evidence(1.0, within.p, within.decided_at)


def _table(result: Result) -> pd.DataFrame | None:
    rows = select(result.frame, task="all")
    told = {}
    for metric in ("update", "cosine to entry", "update direction"):
        of = select(rows, metric=metric)
        told[metric] = rows["condition"].map(
            {row["condition"]: _value(row) for row in of.to_dict("records")}
        )
    columns = {
        "tokens": "Tokens",
        "scale": "Scaled",
        "update": "Update over norm",
        "cosine to entry": "Exit and entry, cosine",
        "update direction": "Update and its own unscaled, cosine",
    }
    mine = rows.assign(**told)
    return table_of_changes(result, mine[mine["metric"].isin(result.meta["margins"])], columns)


NORM_SCALING = Analysis(
    name="norm_scaling",
    run=run_on_report(norm_scaling),
    figure=draw_norm_scaling,
    doing=DOING,
    order=66,
    passes=lambda e: 14 * e.images * (1 + 2 * e.classes),
    heading="What are the norms of visual tokens for?",
    method="Chosen visual tokens are multiplied by a factor where they enter the language model, "
    "or scaled to the median norm of the text. A layer that normalises what it reads adds much "
    "the same to a token of any size, so that its update over the norm before it grows as the "
    "factor falls, by arithmetic: look at where it arrives beside the text, and at the answers. "
    "Changes are to the untouched model on the same questions, and beside as many visual tokens "
    "drawn at random that are scaled alike.",
    caption="By the factor: (a) what the first layer adds, over the norm before it; (b) cosine of "
    "what leaves it and what enters, both with the text’s as it is; below, the change of the "
    "answers. Bands are 95 % intervals over images, the strip is the margin.",
    findings=_findings,
    claims=_claims,
    table=_table,
    by_default=False,
    claims_order=47,
)
register(NORM_SCALING)
