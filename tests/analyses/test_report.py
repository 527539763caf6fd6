"""The report says what its tables say, and nothing that a user typed runs."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from builders.results import (
    LAYERS,
    ablation,
    alignment,
    all_results,
    lens_hits,
    sparsity,
    token_map,
)
from embedlens import InputError
from embedlens.analyses import Claim, Result, find, registered
from embedlens.analyses.numbers_in_words import depth
from embedlens.analyses.report import Report, claims, render, write_report
from embedlens.analyses.report.analyze import analysis_report
from embedlens.analyses.report.demo import demo_report
from embedlens.analyses.report.not_done import not_done

HOSTILE = "<script>alert('x')</script>\"'&{{ 7*7 }}"


PICTURE = b"\x89PNG not really"


def page(report: Report) -> str:
    return render(report, {result.name: PICTURE for result in report.results})


def sentences(result: Result) -> list[str]:
    return find(result.name).findings(result)


def said(result: Result) -> str:
    return " ".join(sentences(result))


def corrected(ps: list[float]) -> list[float]:
    """Holm's correction, spelt out: the i-th smallest of n times n - i, never falling."""
    ranked = sorted(ps)
    return [max(min(1.0, (len(ps) - j) * ranked[j]) for j in range(i + 1)) for i in range(len(ps))]


def told_beside_the_table(result: Result) -> list[float]:
    """Corrected p, counts of layers and tasks, and the margin."""
    frame, tasks = result.frame, result.meta["tasks"]
    single = frame[(frame["scope"] == "single") & (frame["task"] == "all")]
    found = [float(result.meta["margin"]), len(tasks), 2.0 * len(tasks)]
    every = frame[(frame["operation"] != "none") & (frame["task"] == "all")]
    every = every.groupby(["operation", "layers"]).first()
    found += [*corrected(every["difference_p"].tolist()), len(every), LAYERS - 1]
    for _, rows in single.groupby("operation"):
        found += [*corrected(rows["difference_p"].tolist()), len(rows)]
    everywhere = frame[(frame["scope"] == "above") & (frame["layer"] == 0)]
    return found + corrected(everywhere[everywhere["task"] != "all"]["difference_p"].tolist())


def written(result: Result) -> set[str]:
    """Every number of a table (and every count in its record) in every way it may be written."""
    forms = set()
    values: Iterator[float] = (
        float(value)
        for column in result.frame.select_dtypes("number")
        for value in result.frame[column].dropna()
    )
    counts = [value for value in result.meta.values() if type(value) is int]
    more = told_beside_the_table(result) if result.name == "ablation" else []
    ps = result.frame["value"].dropna() if "value" in result.frame else []
    forms |= {f"{p:.3f}" for p in (*more, *ps)} | {"0.001"}
    for value in [*values, *counts, *more]:
        for form in (f"{value:.0f}", f"{value:.1f}", f"{value:.2f}", f"{100 * value:.1f}"):
            forms |= {form.lstrip("-"), form}
    return forms


@pytest.mark.parametrize("result", all_results()[1:], ids=lambda result: result.name)
def test_every_number_that_is_said_stands_in_the_table(result: Result) -> None:
    known = written(result)
    for sentence in sentences(result):
        for number in re.findall(r"(?<![\w.])[−+]?\d+(?:\.\d+)?", sentence):
            assert number.lstrip("−+") in known, f"{number} in {sentence!r}"


def test_words_are_counted_and_their_cosine_is_the_median() -> None:
    first, second = sentences(token_map())
    assert "6 alive tokens of 2 images" in first
    assert "“yellow” 4× and “b” 2×" in first
    assert "median cosine 0.43" in first
    assert "“noisy” 2×" in second


@pytest.mark.parametrize(
    ("result", "expected", "unexpected"),
    [
        (sparsity(), "No sink tokens were found", "are sink"),
        (sparsity(0.6, 0.3, 0.1), "10.0 % (8.9 to 11.1) are sink", "were found"),
        (sparsity(1.0, 0.0, 0.0), "No sink and dead tokens were found", "Dead tokens of"),
        (sparsity(), "Dead tokens of different images are far more alike", "less alike"),
        (alignment(peak=0), "where the paper argues for intermediate", "as the paper argues"),
        (alignment(peak=2), "an intermediate layer, as the paper argues", "the paper argues for"),
        (alignment(peak=LAYERS), "the end of the model, where the paper", "as the paper argues"),
        (alignment(p=0.3), "not aligned with the text of any layer above chance", "nearest layer"),
        (alignment(explained=0.6), "but no layer stands out: those within one", "nearest layer"),
        (alignment(), "explain 97.1 % of what they have above chance (p = 0.025)", "stands out"),
        (alignment(), "By other measures: raw cosine layer 0, centred", "no layer stands"),
        (alignment(), "but no layer is close", "says nothing"),
        (alignment(2, (0.8, 16.1, 47.0, 52.1, 57.3), p=0.3), "which says nothing", "as the paper"),
        (alignment(2, (0.8, 16.1, 47.0, 52.1, 57.3)), "of layer 1 (median 16.1), an", "is close"),
        (lens_hits(), "so the words come from the patch itself", "come from luck"),
        (lens_hits(embed=0.1), "which is not clearly different", "so the words come"),
        (lens_hits(logit=0.01), "the tokens say nothing yet", "come from luck"),
        (ablation(), "−7.3 points (−11.5 to −3.1) without attention, a loss", "a gain"),
        (ablation(0.1, 0.1, 0.2), "(−10.0 to +30.0) without attention, which neither", ", a loss"),
        (ablation(0.0, 0.0, 0.01), "without the FFN, no loss of more than 5.0 points", "neither"),
        (ablation(-0.01, 0.02), "nor rules out one of 5.0 points", ", a loss"),
        (ablation(), "Some single layers need the FFN: the largest change, at layer 0", "nothing"),
        (ablation(-0.01, -0.01), "No single layer clearly needs attention: the largest", "Some"),
        (ablation(), "Without attention, 2 of 2 tasks lose: count (−10.3 points", "No task"),
        (ablation(0.0, 0.0), "No task clearly loses without attention; the largest", "tasks lose:"),
    ],
)
def test_the_wording_follows_the_numbers(result: Result, expected: str, unexpected: str) -> None:
    assert expected in said(result)
    assert unexpected not in said(result)


def with_singles(changes: list[float], ps: list[float]) -> Result:
    """An ablation with these changes and p without attention in single layers, of all tasks."""
    result = ablation(0.0, 0.0)
    frame = result.frame
    mine = (frame["operation"] == "attention") & (frame["scope"] == "single")
    mine &= frame["task"] == "all"
    frame.loc[mine, "difference"] = changes
    frame.loc[mine, "difference_p"] = ps
    return result


def test_of_equal_largest_changes_the_surer_one_is_told() -> None:
    told = with_singles([-0.1, -0.2, 0.2, -0.2], [0.5, 0.2, 0.001, 0.01])
    assert "needs attention: the largest change, at layer 2, is +20.0 points" in said(told)
    assert "is +20.0 points (−4.2 to +4.2), without attention in layer 2, p" in said(told)
    first = with_singles([-0.1, -0.2, 0.2, -0.2], [0.5, 0.01, 0.01, 0.01])
    assert "need attention: the largest change, at layer 1, is −20.0 points" in said(first)
    tasks = ablation()
    everywhere = (tasks.frame["scope"] == "above") & (tasks.frame["layer"] == 0)
    everywhere &= (tasks.frame["task"] != "all") & (tasks.frame["operation"] == "attention")
    tasks.frame.loc[everywhere, "difference"] = 0.1
    tasks.frame.loc[everywhere, "difference_p"] = [0.4, 0.3]
    assert "No task clearly loses without attention; the largest change is in shape" in said(tasks)


def test_the_largest_change_of_all_is_told_wherever_it_is() -> None:
    result = ablation(-0.01, -0.01)
    below = (result.frame["scope"] == "below") & (result.frame["layer"] == 3)
    below &= (result.frame["operation"] == "ffn") & (result.frame["task"] == "all")
    result.frame.loc[below, "difference"] = -0.25
    # Per operation four single layers, three more sets below a layer and two more above one.
    assert "The largest change of all 18 conditions is −25.0 points" in said(result)
    assert "without the FFN in layers 0 to 2, p = " in said(result)
    nothing = ablation(0.0, 0.0)
    nothing.frame["difference"] = 0.0
    assert "None of the 18 conditions changes accuracy." in said(nothing)
    assert "Without attention in any single layer, accuracy stays the same." in said(nothing)


def test_a_sweep_from_below_has_its_tasks_as_well() -> None:
    both, table = ablation(), find("ablation").table
    below = both.frame[both.frame["scope"].isin(["clean", "wrong image", "below"])]
    part = Result("ablation", below.reset_index(drop=True), {}, both.meta)
    assert table(part).equals(table(both))
    assert sentences(part)[0] == sentences(both)[0]


def test_a_missing_control_is_said_not_shown_as_a_number() -> None:
    result = ablation()
    wrong = result.frame["scope"] == "wrong image"
    result.frame.loc[wrong, ["accuracy", "accuracy_low", "accuracy_high"]] = np.nan
    assert "no second image for a wrong-image control" in said(result)
    assert "nan" not in said(result)


def test_without_intervals_none_is_written() -> None:
    result = ablation()
    result.frame.loc[:, result.frame.columns.str.endswith(("_low", "_high"))] = np.nan
    assert "nan" not in said(result)
    assert "−7.3 points without attention, of too few images to say more" in said(result)


def verdict(part: str, *results: Result) -> Claim:
    (claim,) = [claim for claim in claims(results) if part in claim.claim]
    return claim


@pytest.mark.parametrize(
    ("part", "result", "expected"),
    [
        ("60 %", sparsity(0.278), "differs"),
        ("60 %", sparsity(0.61, 0.3, 0.09), "agrees"),
        ("sink", sparsity(), "undecided"),
        ("sink", sparsity(0.6, 0.3, 0.1), "agrees"),
        ("much alike", sparsity(), "agrees"),
        ("layer to layer", sparsity(), "differs"),
        ("intermediate layers", alignment(0), "differs"),
        ("intermediate layers", alignment(2), "agrees"),
        ("intermediate layers", alignment(LAYERS), "differs"),
        ("Norms of entering", alignment(0, (0.8, 16.1, 47.0, 52.1, 57.3)), "agrees"),
        ("Norms of entering", alignment(), "differs"),
        ("intermediate layers", alignment(2, p=0.3), "undecided"),
        ("intermediate layers", alignment(2, explained=0.6), "undecided"),
        ("Norms of entering", alignment(0, (0.8, 16.1, 47.0, 52.1, 57.3), p=0.3), "undecided"),
        ("carry meaning", lens_hits(), "agrees"),
        ("carry meaning", lens_hits(embed=0.1), "differs"),
        ("carry meaning", lens_hits(embed=0.15), "undecided"),
        ("better than LogitLens", lens_hits(), "agrees"),
        ("better than LogitLens", lens_hits(embed=0.01, logit=0.9), "differs"),
        ("Visual attention", ablation(-0.03), "undecided"),
        ("Visual attention", ablation(-0.073), "differs"),  # half of two tasks
        ("Visual attention", ablation(0.0, spread=0.01), "agrees"),
        ("Visual FFN", ablation(ffn=-0.3), "differs"),
    ],
)
def test_verdicts_follow_the_numbers(part: str, result: Result, expected: str) -> None:
    assert verdict(part, result).verdict == expected


def test_second_hand_claims_are_marked() -> None:
    assert verdict("10 % are sink", sparsity()).source == "second-hand"
    assert verdict("60 %", sparsity()).source == "abstract"
    text = page(demo_report(all_results()))
    assert "second-hand" in text
    assert "a difference is no refutation" in text


def test_nothing_that_was_typed_becomes_markup() -> None:
    results = [token_map(HOSTILE), sparsity(), alignment(), ablation()]
    hostile = [
        Result(r.name, r.frame, r.tensors, {**r.meta, "model": HOSTILE, "command": HOSTILE})
        for r in results
    ]
    text = page(analysis_report(hostile, prompt=HOSTILE, images=37, own_texts=False))
    assert "<script" not in text
    assert "alert(&#39;x&#39;)" in text
    assert "{{ 7*7 }}" in text  # written, not computed


def test_the_page_needs_nothing_from_outside() -> None:
    text = page(demo_report(all_results()))
    assert "http://" not in text
    assert "https://" not in text
    assert re.findall(r'src="(?!data:)', text) == []
    assert "default-src 'none'" in text
    assert text.count("data:image/png;base64,") == 6


def test_the_tokens_can_be_pointed_into_and_only_the_viewers_script_may_run() -> None:
    text = page(demo_report(all_results()))
    assert text.count("<iframe") == 1
    section = text[text.index('<section id="token_map"') : text.index('<section id="lens_hits"')]
    (inner,) = re.findall(r'srcdoc="([^"]*)"', section)
    assert unescape(inner).startswith("<!doctype html>")
    (script,) = re.findall(r'(?s)<script type="module">(.*?)</script>', unescape(inner))
    hashed = b64encode(sha256(script.encode()).digest()).decode()
    (allowed,) = re.findall(r"script-src ([^;\"]+)\">", text)
    assert allowed == f"'sha256-{hashed}'"
    assert "data-theme" not in text.split("<iframe")[0]
    assert page(demo_report(all_results()[1:])).count("<iframe") == 0


@pytest.mark.full
def test_the_report_shows_the_first_images_and_says_that_there_are_more() -> None:
    few = token_map()
    parts = [few.frame.assign(sample=few.frame["sample"] + 2 * n) for n in range(15)]
    frame = pd.concat(parts, ignore_index=True)
    names = [f"{sample}/0" for sample in range(30)]
    tensors = {f"image/{name}": few.tensors["image/0/0"] for name in names}
    sizes = {"image_sizes": {name: [20, 20] for name in names}}
    many = Result("token_map", frame, tensors, {**few.meta, **sizes})
    assert len(many.view().data["panels"]) == 30
    text = unescape(page(Report("title", "data", [], [many])))
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    shown = json.loads(data)
    assert len(shown["panels"]) == 24
    assert shown["notes"] == ["These are the first 24 of 30 images; the table has all."]
    assert shown["theme"] == "light"


def test_every_analysis_has_its_section_in_order() -> None:
    text = page(demo_report(all_results()))
    ids = re.findall(r'<section id="([^"]+)"', text)
    names = [result.name for result in all_results()]
    assert ids == [*names, "claims", "limitations", "run"]
    for result in all_results():
        assert sentences(result)


@pytest.mark.parametrize(
    ("model", "called"),
    [
        ("/data/models/llava-13b", "llava-13b"),
        ("./llava-13b/", "llava-13b"),
        ("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
    ],
)
def test_the_title_names_a_folder_by_its_last_part(model: str, called: str) -> None:
    result = ablation()
    named = Result(result.name, result.frame, result.tensors, {**result.meta, "model": model})
    made = analysis_report([named], prompt="what ?", images=20, own_texts=True)
    assert made.title == f"What the visual tokens of {called} carry"


def test_few_images_are_a_limitation() -> None:
    def limits(images: int, own_texts: bool = True) -> str:
        results = [token_map(), ablation()]
        made = analysis_report(results, prompt="what ?", images=images, own_texts=own_texts)
        return " ".join(made.limitations)

    assert "With a single image" in limits(1)
    assert "3 images are few" in limits(3)
    assert "are few" not in limits(16)
    assert "--text" in limits(16, own_texts=False)


@pytest.mark.full
def test_what_was_not_asked_for_is_a_limitation_and_what_was_is_none() -> None:
    unasked = [n for n, one in registered().items() if one.run is not None and not one.by_default]
    assert "pruning" in unasked
    for done in ([], ["pruning"], unasked):
        results = [sparsity(), *(Result(name, pd.DataFrame()) for name in done)]
        told = not_done(results)
        report = analysis_report(results, prompt="a", images=32, own_texts=True)
        assert told in report.limitations
        assert [n for n in unasked if re.search(rf"\b{n}\b", told)] == [
            n for n in unasked if n not in done
        ]


def test_the_report_folder_is_complete_and_refuses_to_replace(tmp_path: Path) -> None:
    report = demo_report(all_results())
    steps: list[str] = []
    made = write_report(
        report, tmp_path / "r", progress=lambda doing, done, total: steps.append(doing)
    )
    assert made == tmp_path / "r" / "report.html"
    for result in report.results:
        assert (tmp_path / "r" / "figures" / f"{result.name}.png").stat().st_size > 1000
        assert (tmp_path / "r" / "figures" / f"{result.name}.pdf").read_bytes()[:5] == b"%PDF-"
        loaded = Result.load(tmp_path / "r" / "tables" / result.name)
        pd.testing.assert_frame_equal(loaded.frame, result.frame)
    assert steps == ["drawing"] * 6
    with pytest.raises(InputError, match="exists"):
        write_report(report, tmp_path / "r")
    write_report(report, tmp_path / "r", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (0, "embedding"),
        (1, "shallow"),
        (2, "middle"),
        (6, "middle"),
        (7, "deep"),
        (8, "end"),
    ],
)
def test_only_the_middle_half_of_the_layers_is_the_middle(layer: int, expected: str) -> None:
    assert depth(layer, last=8) == expected


def test_tables_are_read_without_getting_lost_in_them() -> None:
    """Intervals stand in one line; a long table scrolls, a broad one is wider than the text."""
    text = page(Report("title", "data", [], [ablation(), alignment()]))
    table = find("ablation").table(ablation())
    assert table is not None
    cells = " ".join(re.findall(r"<td>(.*?)</td>", text))
    intervals = re.findall(r"\([^()]* to [^()]*\)", cells)
    assert len(intervals) >= len(table)
    assert re.findall(r'<span class="whole">(.*?)</span>', cells) == intervals
    (classes,) = re.findall(r'<div class="(wide[^"]*)"', text)
    assert ("long" in classes.split()) == (len(table) > 15)
    assert ("broad" in classes.split()) == (len(table.columns) > 8)


def test_a_line_never_breaks_inside_a_number_with_its_sign() -> None:
    text = page(Report("title", "data, 12.5 % of it, p = 0.012 and p < 0.001", [], [ablation()]))
    assert "12.5\N{NO-BREAK SPACE}% of it, p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.012" in text
    assert "p\N{NO-BREAK SPACE}&lt;\N{NO-BREAK SPACE}0.001" in text
