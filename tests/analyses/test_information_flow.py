"""Information flow: planted layers on the way are found, idle ones and random tokens are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tiny
from builders.visual_questions import asked, divergence, plain_inputs, with_idle_layers
from embedlens import Example, InputError, Result, VisualLM, information_flow
from embedlens.analyses import find
from embedlens.analyses.select_rows import one, select
from embedlens.lens.scenes import Scene
from tolerances import RECOMPUTED

pytestmark = pytest.mark.full

IDLE = (0, 3)
BOX = (0, 0, 2 * tiny.PATCH, tiny.PATCH)
CELLS = [(int(row), int(col)) for row, col in np.random.default_rng(1).integers(0, 3, (12, 2))]
"""Of each image a cell drawn at random; its box, with the next cell, is like any other."""

BOXES = [
    (col * tiny.PATCH, row * tiny.PATCH, (col + 2) * tiny.PATCH, (row + 1) * tiny.PATCH)
    for row, col in CELLS
]


@pytest.fixture(scope="module")
def planted() -> tuple[VisualLM, Any]:
    """Layers 1 and 2 carry everything: a question read in 2 has to have been told in 1."""
    return with_idle_layers(IDLE)


@pytest.fixture(scope="module")
def result(planted: tuple[VisualLM, Any]) -> Result:
    return information_flow(
        planted[0], asked(12), objects=BOXES, width=1, metrics=["logprob", "kl"],
        margins={"kl": 1e-3}, max_new_tokens=1, batch_size=4,
    )  # fmt: skip


def test_a_flow_is_found_in_the_layers_where_it_is_used_and_in_no_others(result: Result) -> None:
    rows = select(result.frame, task="all", metric="kl")
    found = {
        flow: [*select(rows, flow=flow, verdict="differs")["layer"]]
        for flow in ("image to question", "image to last", "question to last")
    }
    # What the question is told in layer 2 nobody reads behind it.
    assert found == {
        "image to question": [1],
        "image to last": [1, 2],
        "question to last": [1, 2],
    }
    idle = rows[rows["layer"].isin(IDLE)]
    assert len(idle) == 7 * len(IDLE)
    assert "differs" not in set(idle["verdict"])
    # Of equal numbers there is no interval: what nobody reads changes nothing at all.
    assert (idle.loc[idle["verdict"] == "undecided", "difference"] < 1e-6).all()
    assert (idle["verdict"] == "agrees").sum() > len(idle) / 2


@pytest.mark.parametrize("flow", ["image to question", "question to last", "object to last"])
def test_conditions_equal_a_mask_by_hand(
    planted: tuple[VisualLM, Any], result: Result, flow: str
) -> None:
    inputs, visual = plain_inputs(3)
    n = visual.shape[1]
    words = tiny.tokenizer()("what is this ?", add_special_tokens=False)["input_ids"]
    asked_at = torch.zeros(n, dtype=torch.bool)
    ids = inputs["input_ids"][0].tolist()
    start = next(i for i in range(n) if ids[i : i + len(words)] == words)
    asked_at[start : start + len(words)] = True
    last = torch.arange(n) == n - 1
    drawn = torch.zeros(n, dtype=torch.bool)
    first = CELLS[3][0] * tiny.SIDE + CELLS[3][1]
    drawn[torch.nonzero(visual[0])[first : first + 2, 0]] = True
    readers, hidden = {
        "image to question": (asked_at, visual[0]),
        "question to last": (last, asked_at),
        "object to last": (last, drawn),
    }[flow]
    blocked = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)
    blocked[readers[:, None] & hidden[None]] = torch.finfo(torch.float32).min
    layer = planted[1].model.language_model.layers[1].self_attn

    def mask(_: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": blocked[None, None]}

    with torch.no_grad():
        clean = planted[1](**inputs).logits[0, -1]
        handle = layer.register_forward_pre_hook(mask, with_kwargs=True)
        try:
            kl = divergence(clean, planted[1](**inputs).logits[0, -1])
        finally:
            handle.remove()
    row = one(result.frame, flow=flow, layer=1, metric="kl", task="all")
    number = result.meta["plans"][row["condition"]]
    assert float(result.tensors["kl"][number, 3]) == pytest.approx(kl, abs=RECOMPUTED)
    assert kl > 5 * RECOMPUTED


def test_only_visual_tokens_that_are_not_all_have_a_control(result: Result) -> None:
    rows = select(result.frame, task="all", metric="kl")
    known = rows[rows["control"].notna()]
    assert set(known["flow"]) == {"object to question", "object to last", *_REST}
    assert result.meta["shares"]["object to last"] == pytest.approx(2 / tiny.CELLS)


_REST = ("rest to question", "rest to last")


def test_of_a_box_like_any_other_nothing_beyond_its_control_is_claimed(result: Result) -> None:
    mine = result.frame[result.frame["flow"].isin(["object to question", "object to last"])]
    assert (mine["control_p_holm"].dropna() > 0.05).all()


def test_the_change_of_probability_is_the_mean_of_ratios(result: Result) -> None:
    row = one(result.frame, flow="image to last", layer=1, metric="logprob", task="all")
    values = result.tensors["logprob"].double().numpy()
    plan = result.meta["plans"][row["condition"]]
    ratios = np.exp(values[plan]) / np.exp(values[0])
    assert row["relative"] == pytest.approx(ratios.mean() - 1)
    assert row["relative_low"] < row["relative"] < row["relative_high"]
    assert select(result.frame, metric="kl")["relative"].isna().all()


def test_words_figure_and_table_say_the_frame(result: Result) -> None:
    analysis = find("information_flow")
    said = analysis.findings(result)
    rows = select(result.frame, task="all", metric="logprob", flow="image to last")
    largest = rows.loc[rows["difference"].abs().idxmax()]
    (told,) = [line for line in said if line.startswith("With image to last blocked")]
    assert f"The largest change is in layer {largest['layer']}" in told
    assert f"{100 * largest['relative']:.1f} %".replace("-", "−") in told
    (told,) = [line for line in said if line.startswith("With object to last blocked")]
    assert "(12.5 % of the visual tokens)" in told
    assert len([axes for axes in result.plot().axes if axes.get_visible()]) == 7
    table = analysis.table(result)
    assert table is not None
    assert len(table) == 7 * tiny.LAYERS


def test_nothing_is_found_where_no_layer_mixes_anything() -> None:
    idle, _ = with_idle_layers(range(tiny.LAYERS))
    found = information_flow(idle, asked(8), width=2, metrics=["kl"], batch_size=8)
    assert "differs" not in set(found.frame["verdict"])
    assert (found.frame["difference"] < 1e-4).all()
    said = find("information_flow").findings(found)
    assert not any("a change in" in line for line in said)
    assert not any("begin" in line for line in said)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"objects": [BOX]}, "1 boxes for 2 examples"),
        ({"objects": [BOX, (8, 0, 8, 8)]}, r"objects\[1\] = \(8, 0, 8, 8\)"),
        ({"objects": [BOX, (900, 900, 950, 950)]}, "no visual token shows"),
        ({"width": 99}, "a window of 99 layers"),
        ({"flows": {"a": ("dead", "last")}}, "dead"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    planted: tuple[VisualLM, Any], wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        information_flow(planted[0], asked(2), **wrong)


def test_a_small_box_is_the_token_it_meets(planted: tuple[VisualLM, Any]) -> None:
    rows = [Example(tiny.image(i), "what is this ?") for i in range(2)]
    found = information_flow(
        planted[0], rows, objects=[(1, 1, 2, 2)] * 2, flows={"x": ("object", "last")}, width=4,
        metrics=["kl"],
    )  # fmt: skip
    assert found.meta["shares"]["x"] == pytest.approx(1 / tiny.CELLS)


def test_the_object_that_is_asked_about_is_read_more_than_random_tokens(shipped: VisualLM) -> None:
    drawn = [Scene.sample(1000 + i, n_objects=1) for i in range(12)]
    rows = [
        Example(scene.image(), q.text, q.answer)
        for scene in drawn
        for q in scene.questions(1, tasks=["color"])
    ]
    of = [scene.objects[0] for scene in drawn]
    boxes = [(int(o.x), int(o.y), int(o.x + o.size), int(o.y + o.size)) for o in of]
    flows = {"object to last": ("object", "last")}
    found = information_flow(
        shipped, rows, objects=boxes, flows=flows, width=4, places=2, metrics=["kl"]
    )
    mine = select(found.frame, task="all", flow="object to last")
    assert (mine["beyond"] > 0).all()
    assert (mine["control_p_holm"] < 0.05).any()
    assert any("a difference is shown" in line for line in find("information_flow").findings(found))
