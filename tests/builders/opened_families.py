"""Families of the zoo, opened with an attention implementation, and prompts for them."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest

from embedlens import Batch, TokenClasses, VisualLM
from families.family import noise
from families.zoo import built


@functools.cache
def model_of(name: str, attn: str) -> VisualLM | None:
    """A copy of a family with an attention implementation; None where it has none such."""
    family = built(name)
    model = copy.deepcopy(family.model)
    try:
        model.set_attn_implementation(attn)
    except ValueError:
        return None
    opened = VisualLM(model, family.processor)
    opened.batch(family.inputs)
    return opened


def opened(name: str, attn: str = "sdpa", samples: int = 1) -> tuple[VisualLM, Batch]:
    """A family and one prompt, or two of different length; some tokens are called dead."""
    family, model = built(name), model_of(name, attn)
    if model is None:
        pytest.skip(f"no {attn} attention")
    if samples == 1:
        batch = model.batch(family.inputs)
    else:
        prompts = [family.prompt, f"{family.prompt} red star ?"]
        batch = model.encode([noise(family.size, i) for i in range(2)], prompts)
    dead = np.random.default_rng(5).random(len(batch.visual)) < 0.4
    dead[[0, -1]] = True
    none = np.zeros(len(dead), bool)
    classes = TokenClasses({"vit-sink": none, "llm-sink": none, "dead": dead})
    return model, batch.with_classes(classes)
