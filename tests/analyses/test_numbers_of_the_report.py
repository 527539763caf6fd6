"""Every number in the prose and the small tables of the report, computed again from the results."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from builders.results import ablation, class_agreement, lens_hits, token_map
from embedlens import VisualLM
from embedlens import token_map as map_of
from embedlens.analyses import Result, find
from embedlens.analyses.report import claims
from embedlens.lens.scenes import scenes
from oracles.numbers_in_sentences import assert_numbers, numbers_in
from oracles.told_numbers import SENTENCES, assert_told, by_task


def known(hits: list[bool | None]) -> Result:
    result = token_map()
    result.frame["hit"] = pd.Series(hits * 2, dtype="boolean")
    return result


def one_image_without_words() -> Result:
    result = token_map()
    result.frame.loc[result.frame["sample"] == 1, "class"] = "dead"
    return result


def unclassified() -> Result:
    result = token_map()
    result.frame["class"] = result.frame["class"].cat.remove_categories(["dead", "alive", "sink"])
    return result


def without_intervals() -> Result:
    result = ablation()
    result.frame.loc[:, result.frame.columns.str.endswith(("_low", "_high"))] = np.nan
    return result


def without_effects() -> Result:
    """Nothing changes, and nothing could get better."""
    result = ablation(0.0, 0.0)
    result.frame["difference"] = 0.0
    result.frame.loc[result.frame["scope"] == "clean", "accuracy"] = 1.0
    return result


def from_below() -> Result:
    result = ablation()
    kept = result.frame["scope"].isin(["clean", "wrong image", "below"])
    return Result("ablation", result.frame[kept].reset_index(drop=True), {}, result.meta)


def with_slivers() -> Result:
    result = class_agreement()
    slivers = result.frame[result.frame["shown"] == "object"].assign(shown="sliver of an object")
    slivers[["value", "low", "high"]] -= 0.123
    return Result("class_agreement", pd.concat([result.frame, slivers], ignore_index=True))


RESULTS: dict[str, Callable[[], Result]] = {
    "a map": token_map,
    "a map with truth": lambda: known([True, False, None, None]),
    "a map with an image without words": one_image_without_words,
    "a map without classes": unclassified,
    "hits": lens_hits,
    "hits that fall": lambda: lens_hits(embed=0.3, logit=0.6, chance=0.2),
    "classes": class_agreement,
    "classes with slivers": with_slivers,
    "an ablation": ablation,
    "an ablation in which nothing changes": without_effects,
    "an ablation from below": from_below,
    "an ablation with few effects": lambda: ablation(0.0, 0.0),
    "an ablation with gains": lambda: ablation(0.11, 0.02, 0.03),
    "an ablation that decides nothing": lambda: ablation(-0.01, -0.02, 0.2),
    "an ablation without intervals": without_intervals,
}


@pytest.mark.parametrize("name", RESULTS)
def test_findings_say_the_numbers_of_the_table(name: str) -> None:
    result = RESULTS[name]()
    findings = find(result.name).findings(result)
    assert findings
    for sentence in findings:
        assert_told(result, sentence)


def test_every_sentence_that_is_known_is_said_by_some_result() -> None:
    """What is not said here is not tested."""
    said = [
        (result.name, sentence)
        for result in (make() for make in RESULTS.values())
        for sentence in find(result.name).findings(result)
    ]
    for analysis in {name for name, _ in said}:
        for start, _ in SENTENCES[analysis]:
            mine = [s for name, s in said if name == analysis and re.match(start, s)]
            assert mine, start


@pytest.mark.parametrize("name", [name for name in RESULTS if "ablation" in name])
def test_the_table_of_an_ablation_is_that_of_its_tasks(name: str) -> None:
    result = RESULTS[name]()
    table = find("ablation").table(result)
    expected = by_task(result).reset_index(drop=True)
    assert len(table) == len(expected) == 2 * len(result.meta["tasks"])
    clean = result.frame[result.frame["scope"] == "clean"].set_index("task")["accuracy"]
    for i, row in table.iterrows():
        mine = expected.loc[i]
        assert row["Task"] == mine["task"]
        assert row["Zeroed"].lower() == mine["operation"]
        assert (row["Questions"], row["Images"]) == (mine["examples"], mine["images"])
        assert_numbers(row["Untouched"], [100 * clean[mine["task"]]])
        assert_numbers(row["Accuracy"], [100 * mine["accuracy"]])
        ends = [mine[f"difference{end}"] for end in ("", "_low", "_high")]
        assert_numbers(row["Change"], [100 * end for end in ends if end == end])
        assert_numbers(row["p (Holm)"], [max(mine["p"], 0.001)])


def test_the_table_never_contradicts_the_text() -> None:
    """A task that the table calls needed is one of those that lose, by interval and paired test."""
    result = ablation(-0.2, -0.2)
    here = (result.frame["scope"] == "above") & (result.frame["layer"] == 0)
    here &= (result.frame["task"] == "shape") & (result.frame["operation"] == "attention")
    table = find("ablation").table
    assert set(table(result)["Verdict"]) == {"needed"}
    result.frame.loc[here, "difference_p"] = 0.04  # corrected for four tasks still at most .05
    assert set(table(result)["Verdict"]) == {"needed"}
    result.frame.loc[here, "difference_p"] = 0.2
    shape = table(result).query("Task == 'shape' and Zeroed == 'attention'")
    assert shape["Verdict"].tolist() == ["undecided"]
    said = " ".join(find("ablation").findings(result))
    assert "Without attention, 1 of 2 tasks lose: count" in said


def test_a_loss_that_only_the_number_of_tasks_takes_away_is_not_needed() -> None:
    """Beside tasks that surely agree its verdict is hardly corrected, its paired test is."""
    result = ablation(0.0, 0.0, 0.001)
    here = (result.frame["scope"] == "above") & (result.frame["layer"] == 0)
    mine = here & (result.frame["task"] == "shape") & (result.frame["operation"] == "attention")
    result.frame.loc[here, ["difference_p", "agrees_p", "differs_p"]] = [1.0, 1e-5, 1.0]
    result.frame.loc[mine, ["difference", "difference_p", "agrees_p", "differs_p"]] = [
        *(-0.2, 0.02, 1.0, 1e-4)
    ]
    shape = find("ablation").table(result).query("Task == 'shape' and Zeroed == 'attention'")
    assert shape["Verdict"].tolist() == ["undecided"]
    result.frame.loc[mine, "difference_p"] = 0.01
    shape = find("ablation").table(result).query("Task == 'shape' and Zeroed == 'attention'")
    assert shape["Verdict"].tolist() == ["needed"]


def test_no_claim_differs_by_losses_that_no_paired_test_shows() -> None:
    result = ablation(-0.2, -0.2)
    named = "Visual attention inside the language model is redundant for most tasks."

    def verdict() -> str:
        return next(claim.verdict for claim in claims([result]) if claim.claim == named)

    assert verdict() == "differs"
    result.frame["difference_p"] = 0.5
    assert verdict() == "undecided"


def test_the_table_of_a_map_has_the_words_of_its_first_image() -> None:
    result = known([True, False, None, None])
    table = find("token_map").table(result)
    mine = result.frame[(result.frame["sample"] == 0) & (result.frame["class"] == "alive")]
    assert table["Image"].tolist() == [1] * len(mine)
    assert table["Row"].tolist() == mine["row"].tolist()
    assert table["Column"].tolist() == mine["col"].tolist()
    assert table["Words, nearest first"].tolist() == mine["word_1"].tolist()
    assert table["Right"].tolist() == ["yes", "no", "unknown"]


def test_the_claims_about_hits_say_what_is_in_the_table_and_the_tensors() -> None:
    result = lens_hits()
    meaning, better = find("lens_hits").claims(result)
    frame = result.frame.query("lens == 'EmbedLens' and layer == 0 and k == 1")
    shown = [
        100 * frame.loc[frame["truth"] == truth, name].item()
        for truth in ("own", "permuted")
        for name in ("value", "low", "high")
    ]
    assert_numbers(meaning.here, shown)
    own = result.tensors["own"].double().numpy()
    layers = own.shape[1] - 1
    early = [i for i in range(layers + 1) if i != layers and 4 * i <= 3 * layers]
    per_layer = [own[0, i, 1].mean() - own[1, i, 1].mean() for i in early]
    told = [number for number, _ in numbers_in(better.here)]
    assert told[0] == pytest.approx(100 * np.mean(per_layer), abs=0.051)
    assert told[1] < told[0] < told[2]
    assert told[3:] == [0, early[-1], 5]


def test_the_claims_about_attention_and_ffn_count_the_tasks_of_the_table() -> None:
    result = ablation(-0.2, 0.0, 0.02)
    table = find("ablation").table(result)
    for operation, zeroed in (("attention", "attention"), ("FFN", "FFN")):
        (claim,) = [c for c in claims([result]) if f"Visual {operation}" in c.claim]
        mine = table[table["Zeroed"] == zeroed]["Verdict"].tolist()
        counted = [mine.count(kind) for kind in ("redundant", "needed", "undecided")]
        whole = result.frame.query("task == 'all' and scope == 'above' and layer == 0")
        row = whole[whole["operation"] == operation.lower()].iloc[0]
        change = [100 * row[f"difference{end}"] for end in ("", "_low", "_high")]
        assert_numbers(claim.here.split("; about")[0], [len(mine), *counted, *change])


def test_photos_without_alive_tokens_say_so(shipped: VisualLM) -> None:
    """In the text, and over the picture; the words of the others are drawn."""
    shown = scenes(2)
    batch = shipped.encode([scene.image() for scene in shown], ["describe the image ."] * 2)
    result = map_of(shipped, batch)
    labels = ["dead" if sample == 0 else "alive" for sample in result.frame["sample"]]
    result.frame["class"] = pd.Categorical(labels, ["sink", "dead", "alive"])
    said = " ".join(find("token_map").findings(result))
    assert "In 1 of 2 images no token is alive, so that no words are drawn there." in said
    first, second = result.plot().axes
    assert first.get_title(loc="left") == "Image 1: no token is alive, no words"
    assert not first.texts
    assert len(second.texts) > 30
