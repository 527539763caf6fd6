"""Costs: two counts that must agree, a cache by hand, and a clock that says what is time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from embedlens import (
    Batch,
    InputError,
    Plan,
    PruneTokens,
    Result,
    ScaleTokens,
    VisualLM,
    ZeroFFN,
    cost_of_plans,
)
from embedlens.analyses import find, timed_passes
from embedlens.analyses.comparison_of_plans.named_plans import UNTOUCHED
from embedlens.analyses.costs_of_plans import measure
from embedlens.analyses.select_rows import one


@pytest.fixture(scope="module")
def batch(model: VisualLM) -> Batch:
    return model.encode([[tiny.image(i)] for i in range(2)], [tiny.PROMPTS["middle"]] * 2)


@pytest.fixture(scope="module")
def result(model: VisualLM, batch: Batch) -> Result:
    return cost_of_plans(model, batch, repeats=0)


def test_both_counts_agree_and_the_untouched_one_is_torch_s_of_unfused_attention(
    twin: Any, batch: Batch, result: Result
) -> None:
    """The kernel that torch's counter does not know on CPUs counts as its matrices would."""
    plain = copy.deepcopy(twin().plain)
    plain.set_attn_implementation("eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain(**batch.inputs)
    counts = counter.get_flop_counts()
    layers = sum(
        sum(ops.values())
        for name, ops in counts.items()
        if name.rpartition(".")[0].endswith("language_model.layers")
    )
    rows = result.frame
    assert one(rows, plan=UNTOUCHED)["counted"] == layers > 0
    assert [*rows["counted"]] == [*rows["expected"]]
    assert len(rows) == 9
    assert len(set(rows["counted"])) > 5
    said = find("cost_of_plans").findings(result)
    assert "Our count is torch’s to the last operation in 9 of 9 cases." in said


def test_a_count_that_is_wrong_is_said_to_be(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what torch sees: the planted error."""
    true = measure.counted_by_torch
    monkeypatch.setattr(
        measure,
        "counted_by_torch",
        lambda m, b, plan: (true(m, b, plan)[0] // (2 if plan else 1), true(m, b, plan)[1]),
    )
    found = cost_of_plans(model, batch, {"smaller": Plan(ScaleTokens(factor=0.5))}, repeats=0)
    said = find("cost_of_plans").findings(found)
    assert "in 1 of 2 cases; the farthest is smaller, by 50.0 %." in said[1]


def test_the_cache_is_keys_and_values_of_the_tokens_that_stay(
    model: VisualLM, batch: Batch
) -> None:
    config = model.hf.config.get_text_config()
    each = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    of_token = 2 * config.num_hidden_layers * each * 4
    visual = int(batch.visual.sample.size) // 2
    rows = cost_of_plans(
        model,
        batch,
        {
            "dropped": Plan(PruneTokens(tokens="visual", method="remove")),
            "hidden": Plan(PruneTokens(tokens="visual", method="mask")),
        },
        repeats=0,
    ).frame
    whole = 2 * batch.length * of_token
    assert one(rows, plan=UNTOUCHED)["cache"] == one(rows, plan="hidden")["cache"] == whole
    assert one(rows, plan="dropped")["cache"] == whole - 2 * visual * of_token
    assert rows["peak"].isna().all()


@pytest.mark.parametrize("in_proportion", [True, False])
def test_operations_that_are_no_time_are_said_to_be_none(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch, in_proportion: bool
) -> None:
    """A clock of which passes take as long as their operations, or all the same."""
    plans = {"dropped": Plan(PruneTokens(tokens="visual"))}
    counted = cost_of_plans(model, batch, plans, repeats=0).frame["counted_all"]
    seconds = [*(counted / 1e9)] if in_proportion else [1.0, 1.0]
    ticks = iter(np.cumsum([x for s in seconds * 3 for x in (0.0, s)]).tolist())
    monkeypatch.setattr(timed_passes, "now", lambda model: next(ticks))
    found = cost_of_plans(model, batch, plans, repeats=3)
    said = " ".join(find("cost_of_plans").findings(found))
    assert ("are not time (middle half of 3 passes): dropped, 1.00" in said) != in_proportion
    assert ("Of 1 plan with a tenth less to compute or more, 1" in said) == in_proportion
    ratio = one(found.frame, plan="dropped")["speed_up"]
    assert ratio == pytest.approx(counted[0] / counted[1] if in_proportion else 1.0)


def test_what_cannot_be_carried_out_or_counted_is_said_in_words(
    model: VisualLM, batch: Batch
) -> None:
    plans = {"none such": Plan(ZeroFFN(layers=0, tokens="image[7]")), "fine": Plan(ZeroFFN())}
    found = cost_of_plans(model, batch, plans, repeats=0)
    row = one(found.frame, plan="none such")
    assert "image[7]" in row["reason"]
    assert np.isnan(row["counted"])
    assert one(found.frame, plan="fine")["reason"] == ""
    assert any(s.startswith("Not carried out or not counted, none such: ") for s in
               find("cost_of_plans").findings(found))  # fmt: skip
    with pytest.raises(InputError, match="untouched"):
        cost_of_plans(model, batch, {UNTOUCHED: Plan()})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="peaks of allocation are a GPU's")
def test_dropped_tokens_allocate_less_on_a_gpu() -> None:
    model = VisualLM.load(device="cuda")
    batch = model.encode([[tiny.image(i)] for i in range(2)], ["is there a circle ?"] * 2)
    rows = cost_of_plans(model, batch, repeats=0).frame.set_index("plan")
    assert 0 < rows.loc["all tokens dropped", "peak"] < rows.loc[UNTOUCHED, "peak"]
