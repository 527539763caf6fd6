"""What conditions by layer share: matched draws, families of tests, and what the table says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import tiny
from builders.results import comparison
from embedlens import Example, InputError, Plan, VisualLM, ZeroFFN
from embedlens.analyses.asked_questions import Questions
from embedlens.analyses.comparison_of_plans.named_plans import UNTOUCHED
from embedlens.analyses.select_rows import select
from embedlens.analyses.sweep_over_layers.compared_conditions import (
    about,
    compare_conditions,
    correct,
)
from embedlens.analyses.sweep_over_layers.condition import (
    AskedTokens,
    PlacedPlan,
    check_known,
    checked_tokens,
    some_layers,
    windows,
)
from embedlens.lens import TokenClasses
from embedlens.lens.selectors.parser import parse_selector

EXAMPLES = [Example(tiny.image(i), "what is this ?", "circle") for i in range(3)]


@pytest.fixture(scope="module")
def model(twin: Any) -> VisualLM:
    return twin().model


@pytest.fixture(scope="module")
def asked(model: VisualLM) -> AskedTokens:
    return AskedTokens.of(model, Questions.of(EXAMPLES), None, 2)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    check_known("scope", ["a"], ("a", "b"))
    with pytest.raises(InputError, match="no scope 'c'; there are a, b"):
        check_known("scope", ["a", "c"], ("a", "b"))


@pytest.mark.parametrize("chosen", ["box[0:1, 0:1]", "box[0:2, 0:4]", "box[0:3, 0:4]"])
def test_a_control_acts_on_as_many_others_and_on_others_only_where_there_are_enough(
    asked: AskedTokens, chosen: str
) -> None:
    plan = Plan(ZeroFFN(tokens=chosen))
    controls = asked.controls(plan, chosen, 3)
    assert len({str(control) for control in controls}) == 3
    for control in controls:
        drawn = control.operations[0].selectors()["tokens"]
        for batch in asked.batches.values():
            mine = parse_selector(chosen).select(batch).prompt
            theirs = drawn.select(batch).prompt
            assert (mine.sum(1) == theirs.sum(1)).all()
            many = mine.sum() > (len(batch.visual) / 2)
            assert (mine & theirs).any() == many


def test_there_is_no_control_of_all_visual_tokens(asked: AskedTokens) -> None:
    assert asked.controls(Plan(ZeroFFN()), "visual", 2) == ()
    assert asked.drawn_from("visual & (row[0] | ~row[0])") is None


def test_a_set_that_a_batch_lacks_is_refused_and_shares_are_of_visual_tokens(
    model: VisualLM, asked: AskedTokens
) -> None:
    n = asked.count("visual")[0]
    assert asked.share("box[0:1, 0:1]") == pytest.approx(1 / n)
    assert checked_tokens(asked, None) == ["visual"]
    with pytest.raises(InputError, match="no token of 'box"):
        checked_tokens(asked, ["visual", "box[90:91, 0:1]"])
    with pytest.raises(InputError, match="a list of selectors"):
        checked_tokens(asked, "visual")


def test_classes_that_are_known_are_sets(model: VisualLM, asked: AskedTokens) -> None:
    labels = {}
    for start, batch in asked.batches.items():
        first, none = batch.visual.row == 0, np.zeros(len(batch.visual), bool)
        classes = TokenClasses({"dead": first, "vit-sink": none, "llm-sink": none})
        labels[start] = batch.with_classes(classes)
    known = AskedTokens(2, labels)
    assert checked_tokens(known, None) == ["visual", "dead", "alive"]
    batch = known.label(asked.batches[2], [2])
    assert batch.classes is not None


def test_layers_are_spread_and_windows_reach_the_end() -> None:
    assert some_layers(32, 8) == [0, 4, 8, 12, 16, 20, 24, 28]
    assert some_layers(3, 8) == [0, 1, 2]
    assert [*windows(10, 4, [0, 4, 8])] == [(0, 1, 2, 3), (4, 5, 6, 7), (6, 7, 8, 9)]
    with pytest.raises(InputError, match="a window of 4 layers, of 3"):
        list(windows(3, 4, [0]))


def test_two_conditions_about_the_same_and_none_are_refused(
    model: VisualLM, asked: AskedTokens
) -> None:
    rest = {
        "family": (), "metrics": ["kl"], "margins": None, "max_new_tokens": 1, "seed": 0,
        "progress": print,
    }  # fmt: skip
    one = PlacedPlan(Plan(ZeroFFN(layers=0)), {"layer": 0})
    for conditions, told in (([one, one], "about the same"), ([], "nothing to compare")):
        with pytest.raises(InputError, match=told):
            compare_conditions("x", model, EXAMPLES, conditions, asked, **rest)  # type: ignore[arg-type]


def test_each_family_is_corrected_by_itself() -> None:
    frame = comparison().frame
    told = {"strong": "a", "weak": "a", "none": "b"}
    conditions = {n: PlacedPlan(Plan(), {"kind": kind, "layer": 1}) for n, kind in told.items()}
    whole = pd.concat([about(frame, conditions), frame], axis=1)
    assert whole["layer"].dtype == "Int64"
    assert whole.loc[whole["condition"] == UNTOUCHED, "kind"].isna().all()
    correct(whole, ["kind"])
    for metric in set(whole["metric"]):
        rows = select(whole, task="all", metric=metric)
        rows = rows[rows["condition"] != UNTOUCHED]
        for kind in ("a", "b"):
            mine = select(rows, kind=kind)
            for raw, corrected in (("p", "p_holm"), ("control_p", "control_p_holm")):
                ps = sorted(mine[raw].dropna())
                if not ps:
                    continue
                expected = [min(1.0, ps[0] * len(ps))]
                expected += [max(expected[0], ps[1])] if len(ps) == 2 else []
                assert sorted(mine[corrected].dropna()) == pytest.approx(expected)
        alone = select(rows, condition="none")
        assert (alone["p_holm"].dropna() == alone["p"].dropna()).all()
        least = np.minimum(alone["agrees_p"], alone["differs_p"])
        assert alone["verdict_p_holm"].to_numpy() == pytest.approx(least.to_numpy())
    assert set(select(whole, condition="none", task="all", metric="logprob")["verdict"]) == {
        "agrees"
    }
