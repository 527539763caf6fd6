"""Pruning: what is dropped is gone as by hand, alive tokens matter more than random ones."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch

from builders.visual_questions import asked, divergence, plain_inputs, with_idle_layers
from embedlens import Example, InputError, Markers, Result, VisualLM, pruning
from embedlens.analyses import find, timed_passes
from embedlens.analyses.pruning_of_tokens.measure import portions
from embedlens.analyses.select_rows import one, select
from embedlens.lens.scenes import scenes
from embedlens.lens.selectors.parser import parse_selector
from tolerances import RECOMPUTED

pytestmark = pytest.mark.full

ROW, ALIKE = "row[0]", "random(like=row[0], within=visual, seed=9)"


@pytest.fixture(scope="module")
def random_model() -> tuple[VisualLM, Any]:
    return with_idle_layers([])


@pytest.fixture(scope="module")
def result(random_model: tuple[VisualLM, Any]) -> Result:
    return pruning(
        random_model[0],
        asked(8),
        sets={"the first row": ROW, "like any": ALIKE},
        fractions=[0.5],
        metrics=["kl"],
        seeds=2,
        repeats=0,
        batch_size=4,
    )


def test_dropped_tokens_are_gone_as_by_hand_and_others_keep_their_places(
    random_model: tuple[VisualLM, Any], result: Result
) -> None:
    inputs, visual = plain_inputs(5)
    per_row = int(visual.sum()) // 4
    first = torch.nonzero(visual[0])[:per_row, 0]
    hidden = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    hidden["attention_mask"][0, first] = 0
    hidden["position_ids"] = torch.arange(visual.shape[1])[None]
    with torch.no_grad():
        clean, without = (random_model[1](**each).logits[0, -1] for each in (inputs, hidden))
    row = one(result.frame, dropped="the first row", task="all")
    number = result.meta["plans"][row["condition"]]
    found = float(result.tensors["kl"][number, 5])
    assert found == pytest.approx(divergence(clean, without), abs=RECOMPUTED)
    assert row["share"] == pytest.approx(0.25)
    assert row["cache"] == pytest.approx(1 - per_row / visual.shape[1])
    assert 0 < row["skipped"] < 1
    assert np.isnan(row["speed_up"])


def test_of_tokens_like_any_others_nothing_is_claimed(result: Result) -> None:
    row = one(result.frame, dropped="like any", task="all")
    assert row["control_p_holm"] > 0.05
    assert len(result.meta["controls"][row["condition"]]) == 2
    assert np.isnan(one(result.frame, kind="random", task="all")["control"])


def test_a_share_is_of_every_sample_and_drawn_for_each(random_model: tuple[VisualLM, Any]) -> None:
    model = random_model[0]
    batch = portions(model.encode([row.images for row in asked(3)], ["a b"] * 3), [0.25, 0.9])
    n = len(batch.visual) // 3
    for name, share in (("portion250000", 0.25), ("portion900000", 0.9)):
        drawn = parse_selector(f"random(like={name}, within=visual)").select(batch).prompt
        assert (drawn.sum(1) == round(share * n)).all()
        assert len({row.tobytes() for row in drawn}) == 3


def test_times_are_ratios_of_passes_in_turn(
    random_model: tuple[VisualLM, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock says that the untouched model takes 4 seconds, and any plan 1."""
    steps = cycle([0.0, 4.0, 4.0, 5.0, 5.0, 6.0])
    monkeypatch.setattr(timed_passes, "now", lambda model: next(steps))
    found = pruning(
        random_model[0], asked(8), sets={"a": "row[0]"}, fractions=[0.5], metrics=["kl"], seeds=1,
        repeats=3, batch_size=8,
    )  # fmt: skip
    rows = found.frame[found.frame["kind"].notna()]
    assert (rows["speed_up"] == 4).all()
    said = " ".join(find("pruning").findings(found))
    assert "makes passes over 8 prompts 4.00 times as fast (middle half of 3: 4.00 to 4.00)" in said


def test_words_say_the_table(result: Result) -> None:
    analysis = find("pruning")
    said = analysis.findings(result)
    row = one(result.frame, dropped="the first row", task="all")
    assert "With the first row tokens (25.0 % of the visual ones) dropped" in said[0]
    assert f"{row['difference']:.2f} nats" in said[0]
    assert len(result.plot().axes) == 2
    table = analysis.table(result)
    assert table is not None
    assert [*table["Speed"]] == ["not timed"] * 3
    assert analysis.claims(result) == []


def test_alive_tokens_of_the_shipped_model_matter_more_than_random_ones(shipped: VisualLM) -> None:
    rows = [
        Example(scene.image(), q.text, q.answer, q.task)
        for scene in scenes(12)
        for q in scene.questions(1, seed=0)
    ]
    markers = Markers.discover(shipped, [scene.image() for scene in scenes(16, start=1000)])
    found = pruning(
        shipped, rows, markers=markers, fractions=[], metrics=["kl", "accuracy"], repeats=0
    )
    table = select(found.frame, task="all", metric="kl").set_index("dropped")
    # Without sinks, sink and dead tokens are the dead ones, and so on.
    assert [*table.index] == ["dead", "alive", "all visual"]
    assert table.loc["alive", "control_p_holm"] < 0.05
    assert table.loc["alive", "beyond"] > 0
    assert table.loc["dead", "difference"] < table.loc["alive", "difference"]
    (claim,) = find("pruning").claims(found)
    assert "dead tokens" in claim.claim


def test_a_share_that_is_none_is_refused(random_model: tuple[VisualLM, Any]) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        pruning(random_model[0], asked(1), fractions=[1.0])
    with pytest.raises(InputError, match="nothing is to be dropped"):
        pruning(random_model[0], asked(1), sets={}, fractions=[])
