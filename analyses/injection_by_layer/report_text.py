"""What injection says: from which layer on, and up to which, visual tokens are enough."""

import pandas as pd

from ..analysis import Analysis, Result, register
from ..claim import ABSTRACT, Claim
from ..comparison_of_plans.axis_of_changes import RUN_OFF
from ..comparison_of_plans.measure_names import measure_name
from ..comparison_of_plans.outcomes import DOING
from ..comparison_of_plans.report_text import amount, change, told_reference
from ..numbers_in_words import counted, listing
from ..select_rows import select
from ..statistics import Evidence
from ..sweep_over_layers.conditions_in_words import (
    beyond_control,
    table_of_changes,
    told_change,
)
from ..sweep_over_layers.run_on_report import run_on_report
from .figure import draw_injection
from .measure import NEVER, injection

_NORMS = {"raw": "as they are", "rescaled": "rescaled", "matched": "each with the text’s norm"}


def sufficient(rows: pd.DataFrame) -> list[int]:
    """The layers at which nothing changes, of the rows of one measure, way and norm."""
    return sorted(int(layer) for layer in rows.loc[rows["verdict"] == "agrees", "layer"])


def _curve(rows: pd.DataFrame, way: str, norm: str | None) -> pd.DataFrame:
    found = select(rows, way=way)
    return found[found["norm"].isna()] if norm is None else select(found, norm=norm)


def _findings(result: Result) -> list[str]:
    rows, metrics = select(result.frame, task="all"), result.meta["margins"]
    metric = "accuracy" if "accuracy" in metrics else next(iter(metrics))
    said = [told for m in metrics if (told := _told(result, rows, m))]
    if metric == "accuracy":
        said.append(told_reference(result))
    for never in select(rows, metric=metric, way=NEVER).to_dict("records"):
        said.append(
            f"Where the tokens are never seen, {measure_name(result, metric)} changes by "
            f"{told_change(never, metric, metrics[metric])}: what cannot be worse than that tells "
            "little."
        )
    said += _by_task(result, metric)
    if control := beyond_control(result, rows, "condition"):
        said.append(control)
    return said + _left_out(result)


_DONE = {
    "entry": "entering at {}",
    "exit": "leaving at {}",
    "both": "half of the layers from {} on",
    NEVER: "never being seen",
}


def _left_out(result: Result) -> list[str]:
    """What the model does not allow, each reason once with all that it keeps from being done."""
    layers: dict[str, dict[str, list[str]]] = {}
    for one in result.meta.get("left_out", ()):
        of = layers.setdefault(one["why"], {}).setdefault(one["way"], [])
        of.append(str(one["layer"]))
    said = []
    for why, ways in layers.items():
        told = []
        for way, doing in _DONE.items():
            if mine := list(dict.fromkeys(ways.get(way, ()))):
                named = listing(mine)
                told.append(doing.format(f"layer{'s' * (len(mine) > 1)} {named}"))
        said.append(f"Left out: {'; '.join(told)} ({why}).")
    return said


def _told(result: Result, rows: pd.DataFrame, metric: str) -> str:
    """Where entering and leaving are enough, by one measure."""
    parts = []
    mine, margin = select(rows, metric=metric), amount(result.meta["margins"][metric], metric)
    for norm, name in _NORMS.items():
        entries = _curve(mine, "entry", norm)
        if len(entries):
            parts.append(f"{name} {_where(entries, 'latest')}")
    said = []
    if parts:
        said.append(f"entering is enough {'; '.join(parts)}")
    if len(exits := _curve(mine, "exit", None)):
        said.append(f"leaving is possible {_where(exits, 'earliest')}")
    if not said:
        return ""
    told = " and ".join(said)
    return f"By {measure_name(result, metric)}, to within {margin}: {told}."


def _where(rows: pd.DataFrame, end: str) -> str:
    """At which of the layers of a curve nothing changes."""
    layers = sufficient(rows)
    n = counted(len(rows), "layer")
    if not layers:
        undecided = int((rows["verdict"] == "undecided").sum())
        return f"at none of {n} (undecided at {undecided})"
    best = max(layers) if end == "latest" else min(layers)
    return f"at {len(layers)} of {n}, {end} layer {best}"


def _by_task(result: Result, metric: str) -> list[str]:
    """For every task the latest layer at which tokens may enter as they are."""
    tasks = [task for task in dict.fromkeys(result.frame["task"]) if task != "all"]
    if not tasks:
        return []
    told = []
    for task in tasks:
        rows = _curve(select(result.frame, task=task, metric=metric), "entry", "raw")
        if len(rows):
            told.append(f"{task} {_where(rows, 'latest')}")
    return [f"By task, entering as they are is enough: {listing(told)}."] if told else []


def _claims(result: Result) -> list[Claim]:
    if "accuracy" not in result.meta["margins"]:
        return []
    rows = _curve(select(result.frame, task="all", metric="accuracy"), "entry", "raw")
    middle = result.meta["layers"] // 2
    rows = rows[(rows["layer"] > 0) & (rows["layer"] <= middle)]
    if rows.empty:
        return []
    row = rows.loc[rows["layer"].astype(int).idxmax()].to_dict()
    margin = amount(result.meta["margins"]["accuracy"], "accuracy")
    return [
        Claim(
            "Injecting visual tokens directly at a middle layer is sufficient.",
            ABSTRACT,
            f"{change(row, 'accuracy')} when they enter at layer {row['layer']} of "
            f"{result.meta['layers']} as they are",
            evidence=Evidence.from_row(row),
            agrees_if=f"{measure_name(result, 'accuracy')} changes by less than {margin}",
        )
    ]


def _table(result: Result) -> pd.DataFrame | None:
    columns = {"way": "Way", "norm": "Norm", "layer": "Layer", "last": "Until"}
    return table_of_changes(result, select(result.frame, task="all"), columns)


INJECTION = Analysis(
    name="injection",
    run=run_on_report(injection),
    figure=draw_injection,
    doing=DOING,
    order=63,
    passes=lambda e: 5 * e.images * min(8, e.layers),
    heading="Which layers need visual tokens?",
    method="Visual tokens enter at a layer, with the states with which they entered the model, or "
    "leave at one, or both; all tokens keep their positions and nothing is trained. A layer is "
    "enough where the whole interval of the change lies within the margin, corrected for the "
    "layers of its curve.",
    caption="Change when visual tokens enter at layer k (as they are, with one factor, or each "
    "with the text’s norm), leave at m, or are in half of the layers; bands are 95 % intervals "
    "over images, the strip is the margin. " + RUN_OFF,
    findings=_findings,
    claims=_claims,
    table=_table,
    by_default=False,
    claims_order=45,
)
register(INJECTION)
