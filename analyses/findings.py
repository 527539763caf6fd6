"""What a result says, in sentences whose numbers and whose wording come from its table."""

from collections.abc import Callable
from math import isnan
from typing import Any

import pandas as pd

from ..lens.token_classes import CLASS_NAMES
from .result import Result
from .rows import one, select
from .wording import apart, depth, difference, estimate, listing, number, share

_MOST_WORDS = 6
_OPERATIONS = {"attention": "attention", "ffn": "the FFN"}
_ENOUGH_QUESTIONS = 10  # of a task, before a sentence is said about it


def sentences(result: Result) -> list[str]:
    """The findings of a result, the most important first. Intervals are 95 % over images."""
    return _FINDINGS[result.name](result)


def _token_map(result: Result) -> list[str]:
    frame = result.frame
    pictures = len(frame.groupby(["sample", "image"]))
    of = f"{pictures} images" if pictures > 1 else "one image"
    if frame["class"].isna().all():
        return [
            f"{len(frame)} visual tokens of {of} are read as words; their classes are not known.",
            f"The most frequent nearest words are {_frequent(result, None)}.",
        ]
    said = []
    for name in ("alive", "dead", "sink"):
        tokens = frame[frame["class"] == name]
        if len(tokens):
            said.append(
                f"Nearest words of the {len(tokens)} {name} tokens of {of}, most frequent first: "
                f"{_frequent(result, name)} (median cosine "
                f"{number(tokens['cosine_1'].median())})."
            )
    return said


def _frequent(result: Result, name: str | None) -> str:
    frame = result.frame if name is None else result.frame[result.frame["class"] == name]
    counts = frame["word_1"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    return listing(f"“{word}” {count}×" for word, count in counts.head(_MOST_WORDS).items())


def _lens_hits(result: Result) -> list[str]:
    frame = result.frame
    k, last = 1, int(frame["layer"].max())
    said = []
    for lens in ("EmbedLens", "LogitLens"):
        own = one(frame, lens=lens, layer=0, k=k, truth="own")
        chance = one(frame, lens=lens, layer=0, k=k, truth="permuted")
        verdict = {
            1: "so the words come from the patch itself",
            0: "which is not clearly different",
            -1: "which is even more: read this way, the tokens say nothing yet",
        }[apart(own, chance)]
        said.append(
            f"As tokens enter the language model, the first word of {lens} names what the patch "
            f"shows for {share(own)} of {own['tokens']} patches. With the truth of other patches "
            f"it would be {share(chance)}, {verdict}."
        )
    for lens in ("EmbedLens", "LogitLens"):
        curve = select(frame, lens=lens, k=_middle_k(result), truth="own")
        best = int(curve.sort_values("value", ascending=False, kind="stable")["layer"].iloc[0])
        top, end = one(curve, layer=best), one(curve, layer=last)
        said.append(
            f"Among its first {_middle_k(result)} words, {lens} is right most often at layer "
            f"{best}, {share(top)}"
            + (f", against {share(end)} after the last layer." if best != last else ".")
        )
    return said


def _middle_k(result: Result) -> int:
    ks = sorted(result.frame["k"].unique())
    return int(ks[len(ks) // 2])


def _class_agreement(result: Result) -> list[str]:
    said = []
    for name in ("background", "object"):
        rows = select(result.frame, shown=name)
        if rows.empty:
            continue
        most = rows.sort_values("value", ascending=False)["class"].iloc[0]
        row = one(rows, **{"class": most})
        said.append(
            f"Of the {row['tokens']} patches that show {_article(name)}, {share(row)} were "
            f"classed as {most}, without labels."
        )
    for name in dict.fromkeys(result.frame["shown"]):
        if name not in ("background", "object"):
            alive = one(result.frame, **{"shown": name, "class": "alive"})
            said.append(
                f"Of the {alive['tokens']} that show {_article(name)}, {share(alive)} are alive."
            )
    return said


def _article(name: str) -> str:
    return f"the {name}" if name == "background" else f"a{'n' * (name[0] in 'aeiou')} {name}"


def _sparsity(result: Result) -> list[str]:
    frame = result.frame
    rows = {name: one(frame, **{"measure": "share", "class": name}) for name in CLASS_NAMES}
    present = [name for name in ("alive", "dead", "sink") if rows[name]["images"]]
    images = result.meta["images"]
    shares = listing(f"{share(rows[name])} are {name}" for name in present)
    said = [f"Of the visual tokens of {images} images, {shares}."]
    if missing := [name for name in ("sink", "dead") if name not in present]:
        what = listing(missing)
        said.append(
            f"No {what} tokens were found: no direction of that kind recurs from image to image."
            if len(missing) == 1
            else f"No {what} tokens were found: no direction recurs from image to image."
        )
    if "dead" in present and "alive" in present:
        said += _contrast(frame)
    return said


def _contrast(frame: pd.DataFrame) -> list[str]:
    def of(measure: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            one(frame, **{"measure": measure, "class": "dead"}),
            one(frame, **{"measure": measure, "class": "alive"}),
        )

    dead, alive = of("cosine of tokens")
    more = {1: "far more alike", 0: "about as alike", -1: "less alike"}[apart(dead, alive)]
    said = [
        f"Dead tokens of different images are {more} than alive ones: mean cosine "
        f"{estimate(dead)} against {estimate(alive)}."
    ]
    dead, alive = of("norm")
    larger = {1: "larger", 0: "not clearly different", -1: "smaller"}[apart(dead, alive)]
    said.append(
        f"Norms of dead tokens are {larger}: {estimate(dead, 1)} against {estimate(alive, 1)}."
    )
    stability = select(frame, measure="stability")
    dead_curve = select(stability, **{"class": "dead"})
    least = dead_curve.sort_values("value", kind="stable").iloc[0]
    said.append(
        f"From layer to layer dead tokens keep a cosine of at least {number(least['value'])} "
        f"(least at layer {least['layer']}); for alive tokens the least is "
        f"{number(select(stability, **{'class': 'alive'})['value'].min())}."
    )
    return said


def _alignment(result: Result) -> list[str]:
    frame, last = result.frame, int(result.meta["layers"])
    said = []
    for centred, sort in ((False, "raw"), (True, "mean-centred")):
        peak = int(one(frame, measure="peak layer", comparison="entry", centred=centred)["value"])
        place = {"measure": "cosine", "comparison": "entry", "centred": centred, "layer": peak}
        own = one(frame, **place, states="visual")
        chance = one(frame, **place, states="random")
        said.append(
            f"By {sort} direction, entering tokens are nearest to the text states of layer {peak} "
            f"(mean largest cosine {estimate(own)}, random vectors {estimate(chance)}), "
            f"{_against_the_paper(peak, last)}."
        )
    same = {"measure": "cosine", "comparison": "same layer", "centred": True, "states": "visual"}
    first, end = one(frame, **same, layer=0), one(frame, **same, layer=last)
    turn = {1: "rises", 0: "hardly moves", -1: "falls"}[apart(end, first)]
    said.append(
        f"Inside the model, the centred cosine of visual and text states of one layer {turn} from "
        f"{estimate(first)} to {estimate(end)}."
    )
    matched = int(one(frame, measure="norm-matched layer")["value"])
    text = one(frame, measure="norm", states="text", layer=matched)["value"]
    entry = one(frame, measure="norm", states="entry", layer=0)["value"]
    close = max(entry, text) <= 1.5 * min(entry, text)
    said.append(
        f"By norm, entering tokens (median {number(entry, 1)}) are nearest to the text states of "
        f"layer {matched} (median {number(text, 1)})"
        + (f", {_against_the_paper(matched, last)}." if close else ", but no layer is close.")
    )
    return said


def _against_the_paper(layer: int, last: int) -> str:
    return {
        "embedding": "the input embeddings, where the paper argues for intermediate layers",
        "shallow": "behind the input embeddings, but not in the middle that the paper argues for",
        "middle": "an intermediate layer, as the paper argues",
        "deep": "inside the model, but behind the middle that the paper argues for",
        "end": "the end of the model, where the paper argues for intermediate layers",
    }[depth(layer, last)]


def _ablation(result: Result) -> list[str]:
    rows = select(result.frame, task="all")
    clean, wrong = one(rows, scope="clean"), one(rows, scope="wrong image")
    said = [_everywhere(rows)] if (rows["scope"] == "above").any() else []
    said.append(
        f"The untouched model gives {share(clean, 'accuracy')} of the {clean['examples']} expected "
        "answers; "
        + (
            "there was no second image for a wrong-image control."
            if isnan(wrong["accuracy"])
            else f"shown a wrong image, {share(wrong, 'accuracy')}."
        )
    )
    for operation, name in _OPERATIONS.items():
        single = select(rows, operation=operation, scope="single")
        if not single.empty:
            worst = single.sort_values("difference", kind="stable")["layer"].iloc[0]
            row = one(single, layer=worst)
            said.append(
                f"The single layer that needs {name} most is layer {worst}: {_effect(row)}."
                if row["difference_high"] < 0
                else f"No single layer clearly needs {name}: the largest change, at layer {worst}, "
                f"is {difference(row)}."
            )
    said += _tasks(result)
    return said


def _everywhere(rows: pd.DataFrame) -> str:
    parts = [
        f"without {name} {_effect(one(found))}"
        for operation, name in _OPERATIONS.items()
        if len(found := select(rows, operation=operation, scope="above", layer=0))
    ]
    return f"Zeroed at the visual positions of all layers, accuracy changes: {'; '.join(parts)}."


def _effect(row: dict[str, Any]) -> str:
    low, high = row["difference_low"], row["difference_high"]
    verdict = (
        "a loss" if high < 0 else "a gain" if low > 0 else "no clear change" if low == low else ""
    )
    return f"{difference(row)}{', ' + verdict if verdict else ''}"


def _tasks(result: Result) -> list[str]:
    """Which tasks lose most without attention, and without the FFN, anywhere."""
    names = [task for task in result.meta["tasks"] if len(result.meta["tasks"]) > 1]
    said = []
    for operation, name in _OPERATIONS.items():
        rows = select(result.frame, operation=operation, scope="above", layer=0)
        rows = rows[rows["task"].isin(names) & (rows["examples"] >= _ENOUGH_QUESTIONS)]
        rows = rows[rows["difference_high"] < 0]
        if not rows.empty:
            lost = rows.sort_values("difference", kind="stable")
            losers = listing(
                f"{task} ({difference(one(lost, task=task))}, {one(lost, task=task)['examples']} "
                "questions)"
                for task in lost["task"]
            )
            said.append(
                f"Tasks of at least {_ENOUGH_QUESTIONS} questions that lose without {name} "
                f"(intervals not corrected for the number of tasks): {losers}."
            )
    return said


_FINDINGS: dict[str, Callable[[Result], list[str]]] = {
    "token_map": _token_map,
    "lens_hits": _lens_hits,
    "class_agreement": _class_agreement,
    "sparsity": _sparsity,
    "alignment": _alignment,
    "ablation": _ablation,
}
