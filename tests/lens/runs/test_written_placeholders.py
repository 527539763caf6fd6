"""A placeholder of an image that a model itself writes: as in transformers, or named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from embedlens import Batch, InputError, Plan, VisualLM, ZeroFFN

PLAN = Plan(ZeroFFN(layers=1))
SETTINGS: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
REFUSED = rf"without a cache: .* of sample 1 .* wrote id {tiny.IMAGE_ID}, .*suppress_tokens"


@contextmanager
def written(*models: Any) -> Iterator[None]:
    """Models that write placeholders behind the last of their prompts."""

    def placeholder(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[-1, :, tiny.IMAGE_ID] = 1e4
        return logits

    with ExitStack() as stack:
        for model in models:
            stack.enter_context(model.lm_head.register_forward_hook(placeholder))
        yield


def two(model: VisualLM) -> Batch:
    return model.encode(
        [tiny.image(0), tiny.image(1)], [tiny.PROMPTS["middle"], tiny.PROMPTS["short"]]
    )


def by_transformers(plain: Any, batch: Batch, **more: Any) -> list[list[int]]:
    with torch.no_grad():
        ids = plain.generate(**batch.inputs, **SETTINGS, **more)[:, batch.length :]
    found: list[list[int]] = ids.tolist()
    return found


def test_with_a_cache_it_is_read_as_transformers_reads_it(twin: Any) -> None:
    pair = twin()
    batch = two(pair.model)
    with written(pair.model.hf, pair.plain):
        found = pair.model.generate_ids(batch, **SETTINGS)
        assert found == by_transformers(pair.plain, batch)
        assert found[1] == [tiny.IMAGE_ID] * 3
        assert pair.model.generate_ids(batch, PLAN, **SETTINGS)[1] == [tiny.IMAGE_ID] * 3


@pytest.mark.parametrize("plan", [None, PLAN], ids=["untouched", "with a plan"])
def test_without_a_cache_the_sample_is_named(twin: Any, plan: Plan | None) -> None:
    model = twin().model
    batch = two(model)
    with written(model.hf):
        with pytest.raises(InputError, match=REFUSED):
            model.generate(batch, plan, use_cache=False, **SETTINGS)
        with pytest.raises(InputError, match=REFUSED):
            model.generate(batch, plan, use_cache=False, num_beams=2, **SETTINGS)
        with pytest.raises(InputError, match=REFUSED):
            model.generate_ids_many(batch, [plan, plan], use_cache=False, **SETTINGS)
        with (
            pytest.raises(InputError, match=REFUSED),
            model.generating(batch, plan, use_cache=False, **SETTINGS) as tracer,
        ):
            tracer.result.save()
    assert len(model.generate(batch, plan, use_cache=False, **SETTINGS)) == 2


def test_what_is_written_last_is_never_read(twin: Any) -> None:
    pair = twin()
    batch, told = two(pair.model), {**SETTINGS, "max_new_tokens": 1}
    with written(pair.model.hf):
        assert pair.model.generate_ids(batch, use_cache=False, **told)[1] == [tiny.IMAGE_ID]


def test_beside_no_image_it_is_a_word(twin: Any) -> None:
    pair = twin()
    batch = pair.model.encode([[], []], ["what is this ?", "where is a star ?"], template=False)
    with written(pair.model.hf, pair.plain):
        found = pair.model.generate_ids(batch, use_cache=False, **SETTINGS)
        assert found == by_transformers(pair.plain, batch, use_cache=False)
        assert found[1] == [tiny.IMAGE_ID] * 3
