"""Zeroed FFNs that are not computed: the same numbers for less, where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tiny
from embedlens import Batch, PatchTokens, Plan, ReplaceTokens, VisualLM, ZeroFFN
from embedlens.interventions.engines import ffn_rows_not_needed
from embedlens.interventions.engines.hooks import Hooks
from embedlens.interventions.engines.nnsight import NNsight
from embedlens.lens.anatomy.row_wise import is_row_wise
from families.zoo import READABLE, built, visual_lm
from tolerances import EQUAL

WIDTH = 8


@pytest.fixture
def model(twin: Any) -> VisualLM:
    found: VisualLM = twin().model
    return found


@pytest.fixture
def batch(model: VisualLM) -> Batch:
    images = [[tiny.image(0)], [tiny.image(1), tiny.image(2)]]
    return model.encode(images, [tiny.PROMPTS["middle"], tiny.PROMPTS["two"]])


@contextmanager
def everything_computed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for engine in (NNsight, Hooks):
            patch.setattr(engine, "leaves_out", lambda *_: frozenset())
        yield


def ffn_rows(model: VisualLM, layer: int, run: Callable[[], Any]) -> list[int]:
    """How many rows one layer's FFN multiplies in each of its calls, as its FLOPs tell."""
    run()
    path = f".{model.anatomy.ffn[layer]}"
    mlp = model.hf.get_submodule(path[1:])
    weights = sum(weight.numel() for weight in mlp.parameters() if weight.ndim == 2)
    with FlopCounterMode(display=False) as counter:
        run()
    found = counter.get_flop_counts()
    flops = [sum(ops.values()) for name, ops in found.items() if name.endswith(path)]
    return [count // (2 * weights) for count in flops]


# ---------------------------------------------------------------- which modules


class Twice(nn.Module):
    """Rows in, rows out, by one matrix; ``then`` does something to them."""

    def __init__(self, then: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)
        self.then = then

    def forward(self, states: Tensor) -> Any:
        return self.then(self.up(states))


class Crowded(nn.Module):
    """An expert that takes the first twelve tokens that want it, and drops the others."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        wanting = states[..., :1] > 0
        place = wanting.long().cumsum(1)
        return self.expert(states) * (wanting & (place <= 12))


class Beside(nn.Module):
    """Takes something beside the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor, kinds: Tensor | None = None) -> Tensor:
        return self.up(states)


class OfOneLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: Tensor) -> Tensor:
        return self.up(states) + torch.zeros(47, 1)


ROW_WISE: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "a matrix": (lambda: nn.Linear(WIDTH, WIDTH), True),
    "rows": (lambda: Twice(torch.tanh), True),
    "rows and more": (lambda: Twice(lambda x: (x, x.sum())), True),
    "a row for each, flattened": (lambda: Twice(lambda x: x.flatten(0, 1)), True),
    "the sequence's mean": (lambda: Twice(lambda x: x - x.mean(1, keepdim=True)), False),
    "the token before": (lambda: Twice(lambda x: x + x.roll(1, 1)), False),
    "no rows": (lambda: Twice(lambda x: {"states": x}), False),
    "fewer rows": (lambda: Twice(lambda x: x[:, 1:]), False),
    "a full expert": (Crowded, False),
    "more arguments": (Beside, False),
    "one length": (OfOneLength, False),
}


@pytest.mark.parametrize(("make", "expected"), ROW_WISE.values(), ids=ROW_WISE)
def test_whether_a_module_treats_rows_by_themselves_is_tried(
    model: VisualLM, make: Callable[[], nn.Module], expected: bool
) -> None:
    torch.manual_seed(0)
    module = make()
    state = torch.random.get_rng_state()
    assert is_row_wise(model.hf, module, WIDTH) == expected
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(part.training for part in module.modules())


def test_a_module_that_changed_is_tried_again(model: VisualLM) -> None:
    module = Twice(torch.tanh)
    assert is_row_wise(model.hf, module, WIDTH)
    module.up = nn.Sequential(module.up, Twice(lambda x: x.cumsum(1)))
    assert not is_row_wise(model.hf, module, WIDTH)


def test_nobody_s_hook_meets_fewer_rows(model: VisualLM) -> None:
    module = Twice(torch.tanh)
    handle = module.up.register_forward_hook(lambda *_: None)
    assert not is_row_wise(model.hf, module, WIDTH)
    handle.remove()
    assert is_row_wise(model.hf, module, WIDTH)


# ---------------------------------------------------------------- where it is done


@pytest.mark.parametrize("tokens", ["visual", "visual | text", "image[0] & box[0:2, 0:2]", "last"])
def test_zeroed_rows_are_not_computed(model: VisualLM, batch: Batch, tokens: str) -> None:
    plan = Plan(ZeroFFN(layers="1-2", tokens=tokens))
    found = model.run(batch, plan).logits
    with everything_computed():
        assert (found - model.run(batch, plan).logits).abs().max() < EQUAL
    everyone = len(batch) * batch.length
    meant = len(plan.chosen(batch))
    assert ffn_rows(model, 1, lambda: model.run(batch, plan)) == [everyone - meant]
    assert ffn_rows(model, 0, lambda: model.run(batch, plan)) == [everyone]


def test_answers_and_scores_are_the_same(model: VisualLM, batch: Batch) -> None:
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    for phase in ("prefill", "decode", "all"):
        plan = Plan(ZeroFFN(layers="0-1", tokens="visual | last", phase=phase))
        plan += Plan(ZeroFFN(layers=2, tokens="visual | last", phase=phase))
        ways = [settings, {**settings, "num_beams": 2}, {**settings, "use_cache": False}]
        found = [model.generate_ids(batch, plan, **way) for way in ways]
        scored = model.score(batch, ["red", "a b"], plan).logprob
        with everything_computed():
            assert found == [model.generate_ids(batch, plan, **way) for way in ways]
            expected = model.score(batch, ["red", "a b"], plan).logprob
        assert (scored - expected).abs().max() < EQUAL


def test_the_prompt_s_rows_are_left_out_of_a_generation(model: VisualLM, batch: Batch) -> None:
    plan = Plan(ZeroFFN(layers=1))
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    everyone = len(batch) * batch.length
    (rows,) = ffn_rows(model, 1, lambda: model.generate_ids(batch, plan, **settings))
    assert rows == everyone - len(batch.visual) + 2 * len(batch)


def test_shared_passes_leave_them_out_as_well(model: VisualLM, batch: Batch) -> None:
    """The visual rows of the layers behind the one in which plans part are all zeroed."""
    plans = [Plan(ZeroFFN(layers=f"{first}-3")) for first in range(3)]
    everyone, meant = len(batch) * batch.length, len(batch.visual)
    run = lambda: model.run_many(batch, plans)  # noqa: E731
    found = [one.logits for one in run()]
    left = ffn_rows(model, 2, run)
    with everything_computed():
        for logits, plan in zip(found, plans, strict=True):
            assert (logits - model.run(batch, plan).logits).abs().max() < EQUAL
        whole = ffn_rows(model, 2, run)
    assert (left, whole) == ([3 * (everyone - meant)], [3 * everyone])


def test_many_plans_look_at_a_module_once_in_each_call(
    model: VisualLM, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a module that was changed between two calls the second one notices."""
    plans = [Plan(ZeroFFN(layers=f"{first}-3")) for first in range(4)]
    looked: list[nn.Module] = []

    def look(hf: Any, module: nn.Module, width: int) -> bool:
        looked.append(module)
        return is_row_wise(hf, module, width)

    monkeypatch.setattr(ffn_rows_not_needed, "is_row_wise", look)
    model.run_many(batch, plans)
    assert len(looked) == len(set(looked)) == 4
    hooked = model.layers[3].mlp._module.register_forward_hook(lambda *_: None)
    rows = ffn_rows(model, 3, lambda: model.run_many(batch, plans[3:]))
    hooked.remove()
    assert rows == [len(batch) * batch.length]


def test_it_is_not_done_where_somebody_could_tell(model: VisualLM, batch: Batch) -> None:
    zero, everyone = ZeroFFN(layers=1), len(batch) * batch.length
    before = PatchTokens(source=1, target=2, site="ffn")

    def opened() -> None:
        with model.trace(batch, Plan(zero)):
            seen.append(model.layers[1].mlp.input.save())

    seen: list[Tensor] = []
    ways: dict[str, Callable[[], Any]] = {
        "an open trace": opened,
        "states are captured": lambda: model.run(batch, Plan(zero), capture="ffn", layers=[2]),
        "read before": lambda: model.run(batch, Plan(before, zero)),
    }
    for name, way in ways.items():
        assert ffn_rows(model, 1, way) == [everyone], name
    assert seen[0].shape[:2] == (len(batch), batch.length)
    after = lambda: model.run(batch, Plan(zero, before))  # noqa: E731
    assert ffn_rows(model, 1, after) == [everyone - len(batch.visual)]


def test_what_is_read_behind_it_is_zero(model: VisualLM, batch: Batch) -> None:
    plan = Plan(ZeroFFN(layers=1), PatchTokens(source=1, target=2, site="ffn", tokens="image[0]"))
    zeroed = Plan(ZeroFFN(layers=1), ZeroFFN(layers=2, tokens="image[0]"))
    found, expected = (model.run(batch, one).logits for one in (plan, zeroed))
    assert (found - expected).abs().max() < EQUAL


def test_other_operations_stay_in_force(model: VisualLM, batch: Batch) -> None:
    plan = Plan(ReplaceTokens(by="mean", layers=1), ZeroFFN(layers="1-3"))
    found = model.run(batch, plan).logits
    with everything_computed():
        assert (found - model.run(batch, plan).logits).abs().max() < EQUAL


@pytest.mark.quick("llava", "llama4")
@pytest.mark.parametrize("name", READABLE)
def test_families_give_the_same(name: str) -> None:
    model = visual_lm(name)
    batch = model.batch(built(name).inputs)
    if "sublayers" in model.anatomy.refusals:
        pytest.skip("its sublayers cannot be changed")
    plan = Plan(ZeroFFN())
    found = model.run(batch, plan).logits
    with everything_computed():
        expected = model.run(batch, plan).logits
    assert (found - expected).abs().max() <= EQUAL * max(1.0, float(expected.abs().max()))
