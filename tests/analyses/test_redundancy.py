"""Redundancy: planted layers that add nothing are found redundant, and others are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from builders.visual_questions import asked, divergence, plain_inputs, with_idle_layers
from embedlens import Example, InputError, Result, VisualLM
from embedlens.analyses import find, redundancy
from embedlens.analyses.comparison_of_plans.named_plans import UNTOUCHED
from embedlens.analyses.select_rows import one, select
from oracles.torch_hooks import attached, leaving
from tolerances import RECOMPUTED

pytestmark = pytest.mark.full

IDLE = 2
"""The layer whose attention and FFN add next to nothing."""

SOME = "random(like=box[0:1, 0:2], within=visual, seed=9)"
"""Two tokens like any others: the null for what a set does beyond its control."""


@pytest.fixture(scope="module")
def planted() -> tuple[VisualLM, Any]:
    """A random model of which one layer adds next to nothing, and a plain copy of it."""
    return with_idle_layers([IDLE])


@pytest.fixture(scope="module")
def result(planted: tuple[VisualLM, Any]) -> Result:
    return redundancy(
        planted[0],
        asked(8),
        scopes=("single", "window", "above", "below"),
        width=2,
        tokens=["visual", SOME],
        metrics=("kl",),
        batch_size=4,
    )


def test_a_layer_that_adds_nothing_is_redundant_and_the_others_are_not(result: Result) -> None:
    rows = select(result.frame, task="all", metric="kl", scope="single", tokens="visual")
    assert len(rows) == 3 * tiny.LAYERS
    idle = select(rows, layer=IDLE)
    assert (idle["difference"] < 1e-3).all()
    assert "differs" not in set(idle["verdict"])
    read = select(rows, operation="attention").set_index("layer")["difference"]
    assert (read[[0, 1]] > 1000 * read[IDLE]).all()
    # What visual tokens gather in the last layer, nobody reads.
    assert read[3] == 0
    assert set(select(rows, operation="attention", layer=0)["verdict"]) == {"differs"}


def test_conditions_equal_plain_hooks(planted: tuple[VisualLM, Any], result: Result) -> None:
    plain = planted[1]
    inputs, visual = plain_inputs(3)

    def zero(states: torch.Tensor) -> torch.Tensor:
        states = states.clone()
        states[visual] = 0
        return states

    layers = plain.model.language_model.layers
    modules = {
        ("attention", "window", 0): [layers[0].self_attn, layers[1].self_attn],
        ("ffn", "below", 1): [layers[0].mlp],
        ("both", "above", 1): [m for one in layers[1:] for m in (one.self_attn, one.mlp)],
    }
    with torch.no_grad():
        clean = plain(**inputs).logits[0, -1]
        for (operation, scope, layer), zeroed in modules.items():
            with attached([m.register_forward_hook(leaving(zero)) for m in zeroed]):
                kl = divergence(clean, plain(**inputs).logits[0, -1])
            row = one(
                result.frame, metric="kl", task="all", operation=operation, scope=scope,
                layer=layer, tokens="visual",
            )  # fmt: skip
            number = result.meta["plans"][row["condition"]]
            assert float(result.tensors["kl"][number, 3]) == pytest.approx(kl, abs=RECOMPUTED)
            assert kl > 0.01


def test_every_set_of_layers_is_there_and_named(result: Result) -> None:
    rows = select(result.frame, task="all", metric="kl", operation="both", tokens="visual")
    n = tiny.LAYERS
    named = {scope: select(rows, scope=scope) for scope in ("single", "window", "above", "below")}
    assert [*named["window"]["layers"]] == [f"{m}-{m + 1}" for m in range(n - 1)]
    assert [*named["below"]["layer"]] == [*range(1, n + 1)]
    assert named["above"]["layers"].iloc[0] == named["below"]["layers"].iloc[-1] == f"0-{n - 1}"
    assert named["above"]["difference"].iloc[0] == named["below"]["difference"].iloc[-1]


def test_only_some_visual_tokens_have_a_control(result: Result) -> None:
    rows = select(result.frame, task="all")
    rows = rows[rows["condition"] != UNTOUCHED]
    assert select(rows, tokens="visual")["control"].isna().all()
    assert select(rows, tokens=SOME)["control"].notna().all()
    assert result.meta["drawn_from"] == {"visual": None, SOME: f"visual & ~({SOME})"}


def test_of_tokens_like_any_other_nothing_beyond_its_control_is_claimed(result: Result) -> None:
    rows = select(result.frame, tokens=SOME)
    assert (rows["control_p_holm"].dropna() > 0.05).all()
    said = " ".join(find("redundancy").findings(result))
    assert "In all layers: in none of" in said


def test_words_figure_and_claims_say_the_table(result: Result) -> None:
    analysis = find("redundancy")
    said = analysis.findings(result)
    rows = select(result.frame, task="all", metric="kl", scope="above", layer=0, tokens="visual")
    for row in rows.to_dict("records"):
        assert f"{row['difference']:.2f} nats" in said[0]
    single = select(result.frame, task="all", metric="kl", scope="single", tokens="visual")
    single = select(single, operation="both")
    (told,) = [line for line in said if "single layers without both" in line]
    for verdict, words in (("agrees", "no change in"), ("differs", "a change in")):
        n = int((single["verdict"] == verdict).sum())
        assert (f"{words} {n}" in told) == bool(n)
    assert len(result.plot().axes) == 2 * 4
    table = analysis.table(result)
    assert table is not None
    assert len(table) == 3 * 2


def test_the_claim_is_about_both_in_all_layers_and_needs_accuracy(model: VisualLM) -> None:
    examples = [Example(tiny.image(i), "a b", task="ab"[i % 2]) for i in range(8)]
    found = redundancy(
        model, examples, scopes=["above"], places=1, metrics=["accuracy"], max_new_tokens=2
    )
    (claim,) = find("redundancy").claims(found)
    row = one(found.frame, operation="both", task="all")
    assert f"{100 * row['difference']:+.1f} points".replace("-", "−") in claim.here
    assert claim.source == "second-hand"
    said = find("redundancy").findings(found)
    assert "agreement with what the untouched model itself writes" in said[1]
    assert "accuracy" not in " ".join([*said, claim.here, str(claim.agrees_if)])
    assert any("in all layers, of 2 tasks: " in line for line in said)


def test_a_window_that_does_not_fit_is_refused(model: VisualLM) -> None:
    with pytest.raises(InputError, match="a window of 99 layers"):
        redundancy(model, [Example(tiny.image(0), "what is this ?")], width=99)
