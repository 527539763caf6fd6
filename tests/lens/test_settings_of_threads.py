"""Settings that all threads share stay changed until the last thread needs them no more."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from embedlens.lens.runs.undisturbed import undisturbed
from embedlens.lens.torch_settings import default_torch


def in_turn(make: Callable[[], AbstractContextManager[Any]], look: Callable[[], Any]) -> list[Any]:
    """What is seen inside in two threads, when the first has left, and when both have."""
    first, second = make(), make()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        one.submit(first.__enter__).result()
        two.submit(second.__enter__).result()
        seen = [look()]
        one.submit(first.__exit__, None, None, None).result()
        seen.append(two.submit(look).result())
        two.submit(second.__exit__, None, None, None).result()
    return [*seen, look()]


def test_the_default_type_is_put_back_by_the_last_thread() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        seen = in_turn(default_torch, torch.get_default_dtype)
    finally:
        torch.set_default_dtype(torch.float32)
    assert seen == [torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_set_inside_is_put_back_inside(dtype: torch.dtype) -> None:
    with default_torch():
        torch.set_default_dtype(dtype)
        with default_torch():
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == dtype
        torch.set_default_dtype(torch.float32)


def test_what_is_compiled_runs_as_written_in_every_thread() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    def twice(numbers: Tensor) -> Tensor:
        return numbers * 2

    def runs_compiled() -> bool:
        torch._dynamo.reset()
        before = len(compiled)
        torch.compile(twice, backend=backend)(torch.ones(3))
        return len(compiled) > before

    assert runs_compiled()
    assert in_turn(lambda: undisturbed(nn.Linear(2, 2)), runs_compiled) == [False, False, True]
