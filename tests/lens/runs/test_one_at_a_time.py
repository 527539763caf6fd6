"""Two passes at once on one model are refused; on copies of it they are right."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import tiny
from builders.prompts import tiny_batch
from embedlens import Batch, InputError, PatchTokens, Plan, VisualLM, ZeroFFN

PLANS = [None, Plan(ZeroFFN(layers="1")), Plan(PatchTokens(source=3, target=1, tokens="visual"))]
PASSES: dict[str, Callable[[VisualLM, Batch], Any]] = {
    "run": lambda model, batch: model.run(batch).logits,
    "run_many": lambda model, batch: [run.logits for run in model.run_many(batch, PLANS)],
    "score": lambda model, batch: model.score(batch, ["a", "b", "c"], PLANS[1]).logprob,
    "generate": lambda model, batch: model.generate(batch, PLANS[2], max_new_tokens=2),
    "trace": lambda model, batch: traced(model, batch, lambda: None),
}


def opened() -> tuple[VisualLM, Batch]:
    built = tiny.build()
    model = VisualLM(built.model, built.processor)
    return model, tiny_batch(model)


def traced(model: VisualLM, batch: Batch, inside: Callable[[], Any]) -> Any:
    layers = model.layers
    with model.trace(batch):
        states = layers[1].output.save()
        inside()
    return states


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_inside_an_open_trace_is_refused(name: str) -> None:
    model, batch = opened()
    expected = PASSES[name](model, batch)
    with pytest.raises(InputError, match="trace of the same model is open"):
        traced(model, batch, lambda: PASSES[name](model, batch))
    with (  # noqa: SIM117 (nnsight reads the block's own source)
        pytest.raises(InputError, match="trace of the same model is open"),
    ):
        with model.nn.trace(**batch.inputs):
            PASSES[name](model, batch)
    assert same(PASSES[name](model, batch), expected)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_while_another_thread_has_one_is_refused(name: str) -> None:
    model, batch = opened()
    expected = PASSES[name](model, batch)
    inside, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def hold(*_: Any) -> None:
        inside.set()
        assert done.wait(60)

    def slow() -> None:
        found.append(model.run(batch).logits)

    handle = model.hf.lm_head.register_forward_pre_hook(hold)
    thread = threading.Thread(target=slow)
    thread.start()
    assert inside.wait(60)
    try:
        with pytest.raises(InputError, match="in another thread"):
            PASSES[name](model, batch)
        with pytest.raises(InputError, match="in another thread"):
            VisualLM(model.hf, tiny.processor())
    finally:
        handle.remove()
        done.set()
        thread.join()
    assert torch.equal(found[0], model.run(batch).logits)
    assert same(PASSES[name](model, batch), expected)


def test_threads_on_one_model_get_the_right_numbers_or_the_refusal() -> None:
    model, batch = opened()
    expected, found = PASSES["run_many"](model, batch), []

    def work() -> None:
        for _ in range(4):
            try:
                found.append(same(PASSES["run_many"](model, batch), expected))
            except InputError as error:
                found.append("in another thread" in str(error))

    in_threads([work] * 3)
    assert found == [True] * 12


@pytest.mark.full
def test_copies_run_at_the_same_time() -> None:
    model, batch = opened()
    copies, found = [copy.deepcopy(model) for _ in range(3)], []
    kinds = [name for name in PASSES if name != "trace"]
    expected = [PASSES[name](model, batch) for name in kinds]

    def work(one: VisualLM) -> None:
        found.extend(
            same(PASSES[name](one, batch), right)
            for _ in range(2)
            for name, right in zip(kinds, expected, strict=True)
        )

    in_threads([lambda one=one: work(one) for one in copies])
    assert found == [True] * (3 * 2 * len(kinds))


def in_threads(work: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
