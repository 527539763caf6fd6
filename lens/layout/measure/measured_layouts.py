"""Layouts from measured views, once per image size.

Measuring repeats the processor call half a dozen times. What it finds depends on the sizes of the
images and on nothing in them, so a thousand images of one size are measured once.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL.Image import Image

from ..layout import Layout
from ..layout_inputs import Evidence, Explanation
from ..rules.order import explain
from .painted_images import Again, Views

_MOST_REMEMBERED = 512  # combinations of image sizes per processor

Key = tuple[object, ...]
_remembered: weakref.WeakKeyDictionary[Any, dict[Key, Sequence[Layout]]]
_remembered = weakref.WeakKeyDictionary()


def explain_measured(
    evidence: Evidence, images: Sequence[Sequence[Image | None]], again: Again, processor: Any
) -> Explanation | None:
    """Explain every sample as the first sample with images of its sizes.

    Returns:
        None when an image is not at hand, or a rule fails.
    """
    known = [[image for image in row if image is not None] for row in images]
    if any(len(row) < len(given) for row, given in zip(known, images, strict=True)):
        return None
    memory = {} if processor is None else _remembered.setdefault(processor, {})
    settings = _settings(processor)
    keys: list[Key] = [
        (settings, tuple(image.size for image in row), *map(len, evidence.runs(sample)))
        for sample, row in enumerate(known)
    ]
    new = {key: i for i, key in enumerate(keys) if known[i] and key not in memory}
    if new:
        samples = sorted(new.values())
        found = _measure(evidence, known, samples, again)
        if found is None:
            return None
        fresh = {keys[i]: layouts for i, layouts in zip(samples, found, strict=True)}
        if len(memory) + len(fresh) > _MOST_REMEMBERED:
            fresh = {key: memory[key] for key in keys if key in memory} | fresh
            memory.clear()
        memory.update(fresh)
    return [memory[key] if known[i] else () for i, key in enumerate(keys)]


def _measure(
    evidence: Evidence, images: Sequence[Sequence[Image]], samples: list[int], again: Again
) -> Explanation | None:
    chosen = [list(images[i]) for i in samples]
    tensors = evidence.tensors
    if len(samples) < len(images):
        tensors = again(chosen, samples)
    ids = tensors["input_ids"].cpu().numpy()
    positions = []
    for i, row in zip(samples, ids, strict=True):
        # Fewer samples need less padding, which stands on the left.
        whole = np.zeros(evidence.ids.shape[1], dtype=bool)
        whole[evidence.positions[i]] = True
        if not np.array_equal(evidence.ids[i, -len(row) :], row):
            return None
        positions.append(np.flatnonzero(whole[-len(row) :]))
    counts = tuple(map(len, chosen))
    views = Views(again, chosen, samples)
    part = replace(
        evidence, ids=ids, positions=tuple(positions), counts=counts, tensors=tensors, views=views
    )
    return explain(part)


def _settings(processor: Any) -> str:
    """Everything that changes what the image processor does, as text."""
    part = getattr(processor, "image_processor", None)
    settings: dict[str, Any] = {} if part is None else part.to_dict()
    return json.dumps(settings, default=str)
