"""Injection: planted layers that do not need the image are found, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builders.copies import layers_of, opened, plain
from builders.visual_questions import asked, divergence, plain_inputs, with_idle_layers
from embedlens import Example, Result, Unsupported, VisualLM, injection
from embedlens.analyses import find
from embedlens.analyses.injection_by_layer.measure import NEVER
from embedlens.analyses.select_rows import one, select
from families.family import noise
from families.zoo import built
from oracles.knockouts import knocked_out, mixers_of
from oracles.late_entry import entering_late
from tolerances import RECOMPUTED

pytestmark = pytest.mark.full

FIRST, LAST = 0, 3
"""The layers that add next to nothing: nobody needs visual tokens in them."""


@pytest.fixture(scope="module")
def planted() -> tuple[VisualLM, Any]:
    # Less would drown in rounding: equal numbers, of which no interval is made.
    return with_idle_layers([FIRST, LAST], share=5e-3)


@pytest.fixture(scope="module")
def result(planted: tuple[VisualLM, Any]) -> Result:
    return injection(
        planted[0], asked(8), norms=["raw"], metrics=["kl"], margins={"kl": 1e-3}, batch_size=4
    )


def test_layers_that_do_not_need_the_image_are_sufficient_and_no_others(result: Result) -> None:
    rows = select(result.frame, task="all")
    entries = select(rows, way="entry").set_index("layer")["verdict"]
    assert dict(entries) == {1: "agrees", 2: "differs", 3: "differs"}
    exits = select(rows, way="exit").set_index("layer")["verdict"]
    assert dict(exits) == {1: "differs", 2: "differs", 3: "agrees"}
    assert one(rows, way=NEVER)["verdict"] == "differs"
    # From layer 1 to the end of layer 2 is where they are read.
    both = select(rows, way="both").set_index("layer")
    assert dict(both["verdict"]) == {0: "differs", 1: "agrees"}
    assert dict(both["last"]) == {0: 2, 1: 3}


def test_never_seen_and_leaving_equal_a_mask_by_hand(
    planted: tuple[VisualLM, Any], result: Result
) -> None:
    inputs, visual = plain_inputs(3)
    hidden = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    hidden["attention_mask"][visual] = 0
    hidden["position_ids"] = torch.arange(visual.shape[1])[None]
    with torch.no_grad():
        clean, without = (planted[1](**one).logits[0, -1] for one in (inputs, hidden))
    row = one(result.frame, way=NEVER, task="all")
    number = result.meta["plans"][row["condition"]]
    found = float(result.tensors["kl"][number, 3])
    assert found == pytest.approx(divergence(clean, without), abs=RECOMPUTED)
    assert found > 0.01


def test_words_say_where_it_is_enough(result: Result) -> None:
    analysis = find("injection")
    said = analysis.findings(result)
    assert "entering is enough as they are at 1 of 3 layers, latest layer 1" in said[0]
    assert "leaving is possible at 1 of 3 layers, earliest layer 3" in said[0]
    never = one(result.frame, way=NEVER, task="all")
    assert f"{never['difference']:.2f} nats" in said[1]
    assert len([axes for axes in result.plot().axes if axes.get_visible()]) == 3
    table = analysis.table(result)
    assert table is not None
    assert len(table) == 1 + 3 + 3 + 2


def test_nothing_is_said_of_tokens_like_any_others(planted: tuple[VisualLM, Any]) -> None:
    """The null: two random tokens against two others."""
    found = injection(
        planted[0],
        asked(8),
        ways=["exit"],
        tokens="random(like=box[0:1, 0:2], within=visual, seed=9)",
        metrics=["kl"],
        batch_size=8,
    )
    assert (found.frame["control_p_holm"].dropna() > 0.05).all()
    said = " ".join(find("injection").findings(found))
    assert "In none of 3 comparisons with as many random visual tokens" in said


def test_the_claim_is_about_the_middle_layer_and_accuracy(planted: tuple[VisualLM, Any]) -> None:
    found = injection(
        planted[0], asked(8), ways=["entry"], norms=["raw"], metrics=["accuracy"],
        max_new_tokens=1, batch_size=8,
    )  # fmt: skip
    (claim,) = find("injection").claims(found)
    row = one(found.frame, way="entry", layer=2)
    assert f"{100 * row['difference']:+.1f} points".replace("-", "−") in claim.here
    assert "layer 2 of 4" in claim.here
    assert claim.source == "abstract"


def of_family(name: str, **settings: Any) -> Result:
    family = built(name)
    examples = [Example(noise(family.size, i), family.prompt) for i in range(2)]
    return injection(opened(name, "eager"), examples, metrics=["kl"], batch_size=1, **settings)


def test_layers_behind_added_features_are_measured_as_hooks_do_it() -> None:
    """Features are added before layers 1 and 2: tokens that enter later have them as well."""
    name, k = "qwen3_vl", 3
    result, copied, family = of_family(name, norms=["raw"]), plain(name), built(name)
    assert result.meta["left_out"] == ()
    assert not [s for s in find("injection").findings(result) if "Left out" in s]
    inputs = opened(name, "eager").encode([noise(family.size, 1)], [family.prompt]).inputs
    late, layers = opened(name, "eager").anatomy.visual_mask(inputs), layers_of(copied, name)
    hidden = dict.fromkeys(mixers_of(None, layers[k:]), ~late[:, :, None] & late[:, None])
    with torch.no_grad():
        clean = copied(**inputs).logits[0, -1]
    with entering_late(layers, late, k):
        entered = copied(**inputs).logits[0, -1]
    with knocked_out(hidden):
        left = copied(**inputs).logits[0, -1]
    for way, logits in {"entry": entered, "exit": left}.items():
        row = one(result.frame, way=way, layer=k, task="all")
        found = float(result.tensors["kl"][result.meta["plans"][row["condition"]], 1])
        assert found == pytest.approx(divergence(clean, logits), abs=RECOMPUTED)
        assert found > 1e-3


def test_what_a_model_does_not_allow_is_left_out_and_said() -> None:
    """Three layers keep a running state, and the last one has a mask over keys."""
    result = of_family("qwen3_5")
    rows = select(result.frame, task="all")
    assert [*select(rows, way="exit")["layer"]] == [3]
    assert set(select(rows, way="entry")["layer"]) == {0}
    left = [(x["way"], x["layer"]) for x in result.meta["left_out"] if x["norm"] in (None, "raw")]
    assert left == [(NEVER, 0), *(("entry", x) for x in (1, 2, 3)),
                    *(("exit", x) for x in (1, 2)), ("both", 0), ("both", 1)]  # fmt: skip
    first, second, third = (s for s in find("injection").findings(result) if "Left out" in s)
    assert first.startswith(
        "Left out: entering at layers 1, 2 and 3; half of the layers from layer 1 on; never being "
        "seen (Qwen3_5"
    )
    assert "layer 0 mixes tokens by linear_attention" in first
    assert second.startswith("Left out: leaving at layer 1 (")
    assert third.startswith("Left out: leaving at layer 2; half of the layers from layer 0 on (")
    result.plot()


def test_a_model_that_allows_none_of_it_is_refused() -> None:
    with pytest.raises(Unsupported, match="layer 0 mixes tokens by linear_attention"):
        of_family("qwen3_5", ways=["entry"], norms=["raw"])
