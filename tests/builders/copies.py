"""Each tiny family as embedlens opens it, and once more, wrapped by nobody, for the oracles."""

from __future__ import annotations

import copy
import functools
from typing import Any

from builders.prompts import labelled
from embedlens import Batch, VisualLM
from families.family import FAMILIES, noise
from families.zoo import built, visual_lm


@functools.cache
def plain(name: str, attn: str = "eager") -> Any:
    """A copy that nobody wrapped; ``attn`` may be "" for what the family chooses itself."""
    model = FAMILIES[name]().model
    if attn:
        model.set_attn_implementation(attn)
    return model


@functools.cache
def opened(name: str, attn: str) -> VisualLM:
    """A family as embedlens opens it, with one attention implementation."""
    family = FAMILIES[name]()
    family.model.set_attn_implementation(attn)
    model = VisualLM(family.model, family.processor)
    if family.processor is None:
        model.batch(family.inputs)
    return model


def pair(name: str, attn: str) -> tuple[VisualLM, Any]:
    """A family wrapped, and once more for hooks: eagerly, or as the family chooses itself."""
    if attn == "eager":
        return opened(name, attn), plain(name, attn)
    return visual_lm(name), plain(name, "")


def padded(name: str, model: VisualLM) -> Batch:
    """Two prompts of different length, one image each."""
    family = built(name)
    longer = f"{family.prompt} red star ?"
    return model.encode([noise(family.size, 1), noise(family.size, 2)], [family.prompt, longer])


@functools.cache
def batch_of(name: str, attn: str, two: bool) -> Batch:
    """One prompt or two, of which some visual tokens have classes."""
    model, _ = pair(name, attn)
    return labelled(padded(name, model) if two else model.batch(built(name).inputs))


def eager_copy(model: Any) -> Any:
    """A copy of a model that computes attention eagerly."""
    made = copy.deepcopy(model)
    made.set_attn_implementation("eager")
    return made


def layers_of(model: Any, name: str) -> Any:
    return model.get_submodule(visual_lm(name).anatomy.decoder).layers
