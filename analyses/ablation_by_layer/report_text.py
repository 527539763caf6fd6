"""What an ablation says: what is lost without attention and without the FFN, and in which tasks."""

from collections.abc import Mapping
from dataclasses import replace
from math import isnan, nan
from typing import Any

import pandas as pd

from ..analysis import Analysis, Result, register
from ..asked_questions import OWN_ANSWER
from ..claim import ABSTRACT, Claim
from ..numbers_in_words import counted, difference, listing, p_value, percent, points, share
from ..select_rows import one, select
from ..statistics import Evidence, holm
from .answers import DOING
from .figure import draw_ablation
from .layer_sets import in_all_layers
from .measure import ablation

_OPERATIONS = {"attention": "attention", "ffn": "the FFN"}
_SURE = 0.05


def _findings(result: Result) -> list[str]:
    rows = select(result.frame, task="all")
    said = [_everywhere(result, rows)] if rows["scope"].isin(["above", "below"]).any() else []
    said.append(_controls(result, rows))
    if (rows["operation"] != "none").any():
        said.append(_largest_of_all(result, rows))
    for operation, name in _OPERATIONS.items():
        single = select(rows, operation=operation, scope="single")
        if not single.empty:
            said.append(_single_layers(result, single, name))
    return said + _tasks(result)


def _own(result: Result) -> bool:
    return bool(result.meta["reference"] == OWN_ANSWER)


def _what(result: Result) -> str:
    return "agreement with the model’s own answers" if _own(result) else "accuracy"


def _everywhere(result: Result, rows: pd.DataFrame) -> str:
    parts = [
        f"by {_effect(result, one(found), name)}"
        for operation, name in _OPERATIONS.items()
        if len(found := in_all_layers(rows, operation))
    ]
    changes = f"{_what(result)} changes {', and '.join(parts)}"
    return f"Zeroed at the visual positions of all layers, {changes}."


def _effect(result: Result, row: Mapping[str, Any], name: str) -> str:
    """The change, and what its interval shows."""
    margin, change = points(result.meta["margin"]).removeprefix("+"), difference(row)
    if Evidence.from_row(row).verdict() == "agrees":
        return f"{change} without {name}, no loss of more than {margin}"
    if row["difference_high"] < 0:
        return f"{change} without {name}, a loss"
    if row["difference_low"] > 0:
        return f"{change} without {name}, a gain"
    if isnan(row["difference_low"]):
        return f"{change} without {name}, of too few images to say more"
    return f"{change} without {name}, which neither shows a loss nor rules out one of {margin}"


def _largest(rows: pd.DataFrame) -> dict[Any, Any]:
    """The row of the largest change; of equally large ones that of the least p, then the first."""
    records = rows.to_dict("records")
    return min(records, key=lambda row: (-round(abs(row["difference"]), 9), row["difference_p"]))


def _largest_of_all(result: Result, rows: pd.DataFrame) -> str:
    """The largest change of any condition, whichever scope it is in."""
    rows = rows[rows["operation"] != "none"].drop_duplicates(["operation", "layers"])
    row = _largest(rows.assign(p=holm(rows["difference_p"].tolist())))
    if row["difference"] == 0:
        return f"None of the {len(rows)} conditions changes {_what(result)}."
    layers = row["layers"].replace("-", " to ")
    return (
        f"The largest change of all {len(rows)} conditions is {difference(row)}, without "
        f"{_OPERATIONS[row['operation']]} in layer{'s' * (' ' in layers)} {layers}, "
        f"{p_value(row['p'])}, corrected for all of them."
    )


def _controls(result: Result, rows: pd.DataFrame) -> str:
    clean, wrong = one(rows, scope="clean"), one(rows, scope="wrong image")
    n = clean["examples"]
    if _own(result):
        said = (
            f"What counts as right is what the untouched model itself writes to the {n} questions, "
            "so that it is at its ceiling by construction and all changes are losses"
        )
    else:
        said = f"The untouched model gives {share(clean, 'accuracy')} of the {n} expected answers"
        if clean["accuracy"] == 1:
            said += ", which is its ceiling: nothing can be gained"
        if clean["accuracy"] == 0:
            said += ": there is nothing to lose"
    if isnan(wrong["accuracy"]):
        return f"{said}; there was no second image for a wrong-image control."
    said += f"; shown a wrong image, {share(wrong, 'accuracy')}"
    if not wrong["difference_high"] < 0 and clean["accuracy"] > 0:
        said += ", which is not clearly less, so that the answers may not need the image"
    return f"{said}."


def _single_layers(result: Result, single: pd.DataFrame, name: str) -> str:
    """The largest change is always told, with its p corrected for the number of layers."""
    row = _largest(single.assign(p=holm(single["difference_p"].tolist())))
    if row["difference"] == 0:
        return f"Without {name} in any single layer, {_what(result)} stays the same."
    largest = (
        f"the largest change, at layer {row['layer']}, is {difference(row)}, {p_value(row['p'])}"
    )
    if row["p"] <= _SURE and row["difference"] < 0:
        return f"Some single layers need {name}: {largest}, corrected for {len(single)} layers."
    return f"No single layer clearly needs {name}: {largest}, corrected for {len(single)} layers."


def by_task(result: Result) -> pd.DataFrame:
    """What is lost in every task without an operation in all layers; p corrected (Holm)."""
    rows = [
        row
        for operation in _OPERATIONS
        for task in result.meta["tasks"]
        if len(found := in_all_layers(select(result.frame, task=task), operation))
        for row in [one(found)]
    ]
    columns = ["task", "operation", "examples", "images", "clean", "accuracy"]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    clean = select(result.frame, scope="clean").set_index("task")["accuracy"]
    table = table.assign(clean=table["task"].map(clean), p=holm(table["difference_p"].tolist()))
    ps = holm([_of_one_task(row).p for row in rows])
    verdicts = [_of_one_task(row).verdict(p) for row, p in zip(rows, ps, strict=True)]
    # What the text does not call a loss is not needed in the table either.
    table["verdict"] = [
        "undecided" if verdict == "differs" and p > _SURE else _PER_TASK[verdict]
        for verdict, p in zip(verdicts, table["p"], strict=True)
    ]
    columns += ["difference", "difference_low", "difference_high", "difference_p", "p", "verdict"]
    return table[columns]


def _of_one_task(row: Mapping[str, Any]) -> Evidence:
    """Evidence from a row; a loss has to be shown by the paired test too."""
    found = Evidence.from_row(row)
    return replace(found, differs=max(found.differs, row["difference_p"]))


_PER_TASK = {"agrees": "redundant", "differs": "needed", "undecided": "undecided"}


def _tasks(result: Result) -> list[str]:
    """Which tasks lose without attention, and without the FFN, anywhere."""
    if len(result.meta["tasks"]) < 2:
        return []
    table, said = by_task(result), []
    for operation, name in _OPERATIONS.items():
        rows = table[table["operation"] == operation] if len(table) else table
        if rows.empty:
            continue
        lost = rows[(rows["p"] <= _SURE) & (rows["difference"] < 0)]
        if not rows["difference"].any():
            said.append(f"Without {name}, {_what(result)} stays the same in every task.")
        elif lost.empty:
            told = _of_task(_largest(rows))
            said.append(f"No task clearly loses without {name}; the largest change is in {told}.")
        else:
            lost = lost.sort_values("difference", kind="stable")
            losers = listing(_of_task(row) for row in lost.to_dict("records"))
            said.append(f"Without {name}, {len(lost)} of {len(rows)} tasks lose: {losers}.")
    if said:
        said.append(f"These p are of paired tests, corrected for all {len(table)} (Holm).")
    full = [task for task in result.meta["tasks"] if _clean(result, task) == 1]
    if full and not _own(result):
        where = "every task" if len(full) == len(result.meta["tasks"]) else listing(full)
        said.append(f"The untouched model is at its ceiling in {where}.")
    return said


def _of_task(row: Mapping[Any, Any]) -> str:
    return (
        f"{row['task']} ({difference(dict(row))}, {counted(row['examples'], 'question')}, "
        f"{p_value(row['p'])})"
    )


def _clean(result: Result, task: str) -> float:
    return float(one(result.frame, scope="clean", task=task)["accuracy"])


def _claims(result: Result) -> list[Claim]:
    margin = points(result.meta["margin"]).removeprefix("+")
    return [
        Claim(
            f"Visual {name} inside the language model is redundant for most tasks.",
            ABSTRACT,
            _counted(table, one(found)),
            evidence=_most([_of_one_task(one(in_all_layers(rows, operation))) for rows in of]),
            agrees_if=f"in more than half of the tasks the loss is less than {margin}",
        )
        for operation, name in (("attention", "attention"), ("ffn", "FFN"))
        if len(found := in_all_layers(select(result.frame, task="all"), operation))
        for table in [by_task(result).query("operation == @operation")]
        for of in [[select(result.frame, task=task) for task in result.meta["tasks"]]]
    ]


def _counted(table: pd.DataFrame, overall: Mapping[str, Any]) -> str:
    kinds = [
        f"{(table['verdict'] == kind).sum()} {kind}" for kind in dict.fromkeys(_PER_TASK.values())
    ]
    tasks = counted(len(table), "task")
    return f"of {tasks} {listing(kinds)}; {difference(overall)} in all, without it in any layer"


def _most(tasks: list[Evidence]) -> Evidence:
    """Evidence that more than half of the tasks agree, or that at least half differ.

    That so many tasks agree is as sure as the least sure of them, corrected for all tasks.
    """
    n = len(tasks)
    agrees = sorted(holm([task.agrees for task in tasks]))[n // 2]
    differs = sorted(holm([task.differs for task in tasks]))[(n + 1) // 2 - 1]
    needed = sorted(nan if isnan(task.decided_at) else task.decided_at for task in tasks)
    known = [images for images in needed if not isnan(images)]
    return Evidence(agrees, differs, known[n // 2] if len(known) > n // 2 else nan)


def _data(result: Result) -> str:
    if _own(result):
        return (
            "There are no given answers: what is measured is agreement with the first tokens that "
            "the untouched model writes, as ids."
        )
    return f"Answers are compared with {result.meta['reference']}."


def _table(result: Result) -> pd.DataFrame | None:
    """The table of the report: one row per task and operation."""
    table = by_task(result)
    if table.empty:
        return None
    own = _own(result)
    return pd.DataFrame(
        {
            "Task": table["task"],
            "Zeroed": table["operation"].map({"attention": "attention", "ffn": "FFN"}),
            "Questions": table["examples"],
            "Images": table["images"],
            "Untouched": table["clean"].map(percent),
            "Agreement" if own else "Accuracy": table["accuracy"].map(percent),
            "Change": [difference(dict(row)) for _, row in table.iterrows()],
            "p (Holm)": [p_value(p).removeprefix("p = ") for p in table["p"]],
            "Verdict": table["verdict"],
        }
    )


ABLATION = Analysis(
    name="ablation",
    run=lambda m: ablation(
        m.model, m.examples, batch_size=m.examples_at_once, seed=m.seed, progress=m.progress
    ),
    figure=draw_ablation,
    doing=DOING,
    order=60,
    passes=lambda e: e.images * (5.5 * e.layers + 2),
    heading="What are visual attention and the FFN worth?",
    method="What attention or the FFN would add to the residual stream is set to zero at the "
    "visual positions, in some layers; their keys and values stay readable. An answer counts when "
    "greedy decoding writes exactly it, and a question counts once. A task is redundant when the "
    "whole interval of its change lies above the margin, needed when it lies below and a paired "
    "test shows a loss, and undecided otherwise.",
    caption="Exact matches when the output of attention or the FFN is zeroed at visual positions "
    "of some layers; bands are 95 % intervals over images, the lines show the untouched model with "
    "the right and with a wrong image. Where there are several tasks, the last panel shows the "
    "change in each when it is zeroed in all layers, with 95 % intervals; the shaded strip is the "
    "margin.",
    findings=_findings,
    claims=_claims,
    data=_data,
    table=_table,
    claims_order=40,
)
register(ABLATION)
