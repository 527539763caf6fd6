"""Tracing contexts: arguments of the forward give what they promise, or are refused."""

from __future__ import annotations

from typing import Any

import pytest

import tiny
from builders.prompts import tiny_batch
from embedlens import InputError


def test_weights_that_no_kernel_makes_are_refused(twin: Any) -> None:
    model = twin("llama", "sdpa").model
    with pytest.raises(InputError, match=r"sdpa attention makes no weights.*'eager'"):
        model.trace(tiny_batch(model), output_attentions=True)


def test_weights_that_are_asked_for_are_returned(twin: Any) -> None:
    model = twin("llama", "eager").model
    batch = tiny_batch(model)
    with model.trace(batch, output_attentions=True):
        weights = model.nn.output.attentions.save()
    assert len(weights) == tiny.LAYERS
    assert all(layer.shape[-2:] == (batch.length, batch.length) for layer in weights)
