"""Norm scaling: updates as by hand, planted models whose answers need the norm or cannot see it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from builders.visual_questions import asked, divergence, plain_inputs, with_idle_layers
from embedlens import InputError, Result, VisualLM, norm_scaling
from embedlens.analyses import find
from embedlens.analyses.claim import judged
from embedlens.analyses.comparison_of_plans.named_plans import UNTOUCHED
from embedlens.analyses.select_rows import one, select
from tolerances import MEASURED, RECOMPUTED

ROW = "row[0]"


def blind() -> VisualLM:
    """Nobody gathers anything: only the FFN adds to a token, whatever its norm."""
    built = tiny.build()
    with torch.no_grad():
        for layer in built.model.model.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return VisualLM(built.model, built.processor)


def entering_larger(times: float) -> VisualLM:
    """Visual tokens of so many times the norm, of a model that gathers much."""
    built = tiny.build()
    with torch.no_grad():
        projector = built.model.model.multi_modal_projector.linear_2
        projector.weight.mul_(times)
        projector.bias.mul_(times)
    return VisualLM(built.model, built.processor)


@pytest.fixture(scope="module")
def random_model() -> tuple[VisualLM, Any]:
    return with_idle_layers([])


@pytest.fixture(scope="module")
def result(random_model: tuple[VisualLM, Any]) -> Result:
    return norm_scaling(
        random_model[0], asked(8), factors=[0.01, 5.0], tokens=["visual", ROW], batch_size=4
    )


def by_hand(plain: Any, seed: int, factor: float, row: bool) -> dict[str, Any]:
    """One image through a copy whose embeddings are multiplied where they enter the decoder."""
    inputs, visual = plain_inputs(seed)
    mine = visual[0].nonzero()[:, 0]
    if row:
        mine = mine[: len(mine) // 4]
    model, kept = copy.deepcopy(plain), {}

    def scale(_: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        states = given["hidden_states"] if "hidden_states" in given else args[0]
        states = states.clone()
        states[0, mine] *= factor
        kept["before"] = states[0].double()
        if "hidden_states" in given:
            return args, {**given, "hidden_states": states}
        return (states, *args[1:]), given

    def keep(_: Any, args: Any, output: Any) -> None:
        kept["after"] = (
            (output[0] if isinstance(output, tuple) else output)
            .reshape(visual.shape[1], -1)
            .double()
        )

    layer = model.model.language_model.layers[0]
    layer.register_forward_pre_hook(scale, with_kwargs=True)
    layer.register_forward_hook(keep)
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
    return {**kept, "logits": logits, "mine": mine, "text": (~visual[0]).nonzero()[1:, 0]}


@pytest.mark.parametrize("row", [False, True])
def test_updates_and_divergence_are_those_of_embeddings_scaled_by_hand(
    random_model: tuple[VisualLM, Any], result: Result, row: bool
) -> None:
    expected = []
    for seed in range(8):
        clean, scaled = (by_hand(random_model[1], seed, f, row) for f in (1.0, 0.01))
        mine, text = clean["mine"], clean["text"]
        was, update = (one["after"] - one["before"] for one in (clean, scaled))
        cosine = torch.cosine_similarity(scaled["after"], scaled["before"], dim=1)
        own = torch.cosine_similarity(clean["after"], clean["before"], dim=1)
        texts = float(own[text].mean())
        expected.append(
            {
                "norm": scaled["before"][mine].norm(dim=1).mean(),
                "update": (update.norm(dim=1) / scaled["before"].norm(dim=1))[mine].mean(),
                "cosine to entry": cosine[mine].mean(),
                "update direction": torch.cosine_similarity(update, was, dim=1)[mine].mean(),
                "distance to text": abs(cosine[mine].mean() - texts),
                "kl": divergence(clean["logits"], scaled["logits"]),
                "entry of text": texts,
            }
        )
    means = {name: np.mean([float(e[name]) for e in expected]) for name in expected[0]}
    rows = select(result.frame, tokens=ROW if row else "visual", scale="× 0.01", task="all")
    for name in list(means)[:-1]:
        assert one(rows, metric=name)["value"] == pytest.approx(means[name], rel=MEASURED), name
    told = one(result.frame, tokens="text", metric="cosine to entry")
    assert told["value"] == pytest.approx(means["entry of text"], abs=RECOMPUTED)
    assert told["condition"] == UNTOUCHED


def test_changes_are_to_the_same_tokens_and_the_control_s_to_its_own(result: Result) -> None:
    rows = select(result.frame, tokens=ROW, metric="update")
    before = one(rows, scale="× 1")["value"]
    for scale in ("× 0.01", "× 5", "to the text's norm"):
        row = one(rows, scale=scale)
        assert row["difference"] == pytest.approx(row["value"] - before)
        # Random tokens of a random model are like any others: their update grows as much.
        assert row["beyond"] == pytest.approx(row["difference"] - row["control"])
        assert abs(row["beyond"]) < 0.2 * abs(row["difference"])
    visual = select(result.frame, tokens="visual", metric="update")
    assert visual["control"].isna().all()


def test_where_nobody_gathers_answers_stay_and_updates_grow_by_arithmetic() -> None:
    """The null: the FFN's addend has one size, and the last token never sees the image."""
    found = norm_scaling(blind(), asked(8), factors=[0.01, 10.0], matched=False, seeds=0)
    rows = select(found.frame, task="all", tokens="visual")
    before = one(rows, metric="update", scale="× 1")["value"]
    for factor in (0.01, 10.0):
        here = select(rows, scale=f"× {factor:g}")
        # The norm's epsilon is not nothing beside states so small.
        assert one(here, metric="update")["value"] == pytest.approx(before / factor, rel=3e-2)
        assert one(here, metric="update direction")["value"] > 0.99
        assert one(here, metric="kl")["value"] == 0
        # Eight equal values bound nothing, and nothing is claimed of them.
        assert (here["verdict"].dropna() == "undecided").all()
    claims = judged(find("norm_scaling").claims(found))
    assert [claim.verdict for claim in claims] != ["agrees", "agrees"]
    assert claims[1].verdict != "agrees"


def test_answers_that_need_the_norm_are_found_to(random_model: tuple[VisualLM, Any]) -> None:
    found = norm_scaling(
        random_model[0], asked(8), factors=[0.01, 0.999], matched=False, metrics=["kl"],
        margins={"kl": 1e-3}, seeds=0,
    )  # fmt: skip
    verdicts = select(found.frame, metric="kl").set_index("scale")["verdict"]
    assert dict(verdicts) == {"× 0.01": "differs", "× 0.999": "agrees"}


@pytest.mark.full
@pytest.mark.parametrize(("times", "verdict"), [(100.0, "agrees"), (0.3, "differs")])
def test_only_tokens_that_are_larger_than_text_become_like_it_when_scaled_down(
    times: float, verdict: str
) -> None:
    found = norm_scaling(entering_larger(times), asked(8), factors=[0.01], metrics=["kl"], seeds=0)
    rows = select(found.frame, metric="norm")
    ratio = one(rows, tokens="visual", scale="× 1")["value"] / one(rows, tokens="text")["value"]
    assert (ratio > 3) == (verdict == "agrees")
    (claim,) = judged(find("norm_scaling").claims(found))
    assert claim.verdict == verdict, claim.here


@pytest.mark.full
def test_few_images_decide_nothing(random_model: tuple[VisualLM, Any]) -> None:
    found = norm_scaling(random_model[0], asked(3), factors=[0.01], seeds=0)
    assert {claim.verdict for claim in judged(find("norm_scaling").claims(found))} == {"undecided"}


@pytest.mark.full
def test_of_tokens_like_any_others_nothing_is_claimed(random_model: tuple[VisualLM, Any]) -> None:
    alike = "random(like=row[0], within=visual, seed=9)"
    found = norm_scaling(random_model[0], asked(8), factors=[0.01, 5.0], tokens=[alike])
    assert (found.frame["control_p_holm"].dropna() > 0.05).all()
    said = " ".join(find("norm_scaling").findings(found))
    assert "as many random visual tokens is a difference shown" in said


@pytest.mark.parametrize(
    ("change", "inside", "outside", "verdict"),
    [
        (-0.5, 1.0, 1e-4, "agrees"),
        (0.5, 1.0, 1e-4, "differs"),
        (-0.01, 1e-4, 1.0, "differs"),
        (-0.2, 0.4, 0.3, "undecided"),
    ],
)
def test_only_a_loss_beyond_the_margin_is_a_loss(
    result: Result, change: float, inside: float, outside: float, verdict: str
) -> None:
    frame = result.frame.copy()
    mine = select(frame, metric="accuracy", tokens="visual", scale="× 0.01", task="all").index
    frame.loc[mine, ["difference", "agrees_p", "differs_p"]] = [change, inside, outside]
    told = find("norm_scaling").claims(Result(result.name, frame, result.tensors, result.meta))
    assert judged([told[1]])[0].verdict == verdict


def test_words_say_the_table(result: Result) -> None:
    analysis = find("norm_scaling")
    said = analysis.findings(result)
    row = one(result.frame, tokens="visual", scale="× 0.01", metric="update")
    assert (
        f"{row['value']:.2f} ({row['value_low']:.2f} to {row['value_high']:.2f}) scaled" in said[0]
    )
    assert "are scaled × 0.01, agreement with the model’s own answers changes by" in " ".join(said)
    table = analysis.table(result)
    assert table is not None
    assert len(table) == 2 * 3
    assert table["Update over norm"].iloc[0].startswith(f"{row['value']:.2f}")
    assert len(result.plot().axes) == 4
    matched = one(result.frame, tokens="visual", scale="to the text's norm", metric="norm")
    unscaled = one(result.frame, tokens="visual", scale="× 1", metric="norm")
    assert matched["factor"] == pytest.approx(matched["value"] / unscaled["value"], rel=MEASURED)


def test_a_factor_that_changes_nothing_or_leaves_nothing_is_refused(model: VisualLM) -> None:
    for factor in (0.0, -1.0, 1.0):
        with pytest.raises(InputError, match="above 0, and not 1"):
            norm_scaling(model, asked(1), factors=[factor])
    with pytest.raises(InputError, match="nothing is to be scaled"):
        norm_scaling(model, asked(1), factors=[], matched=False)
