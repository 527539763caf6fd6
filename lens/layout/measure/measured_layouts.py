"""Layouts from what the processor was measured to do, once per image size.

Measuring repeats the processor call: six times for the first sizes of a processor, once for the
next, mostly without the text, and not at all where a rule was found since (``placed_by_rule``).
What it finds depends on the sizes of the images and on nothing in them, so a thousand images of one
size are measured once.
"""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL.Image import Image

from ..layout import Layout
from ..layout_inputs import LayoutInputs, Layouts
from ..rules.order import explain
from .painted_images import Learned, MeasuredOrigins, RepeatCall

_MOST_REMEMBERED = 512  # combinations of image sizes per processor

Key = tuple[object, ...]
Memory = dict[Key, Sequence[Layout]]
_memories: weakref.WeakKeyDictionary[Any, Memory] = weakref.WeakKeyDictionary()
# By the settings of a processor what was learned of it.
_learned: weakref.WeakKeyDictionary[Any, dict[str, Learned]] = weakref.WeakKeyDictionary()
# By processor its image processor, the attributes of that, and its settings as text.
_written: weakref.WeakKeyDictionary[Any, tuple[Any, dict[str, Any], str]] = (
    weakref.WeakKeyDictionary()
)


def explain_measured(
    inputs: LayoutInputs,
    images: Sequence[Sequence[Image | None]],
    repeat_call: RepeatCall,
    processor: Any,
) -> Layouts | None:
    """Explain every sample as the first sample with images of its sizes.

    None when an image is not at hand, or a rule fails.
    """
    known = [[image for image in row if image is not None] for row in images]
    if any(len(row) < len(given) for row, given in zip(known, images, strict=True)):
        return None
    memory: Memory = {} if processor is None else _memories.setdefault(processor, {})
    settings = _settings(processor)
    keys: list[Key] = [
        (settings, tuple(image.size for image in row), *map(len, inputs.stretches(sample)))
        for sample, row in enumerate(known)
    ]
    new = {key: i for i, key in enumerate(keys) if known[i] and key not in memory}
    if new:
        samples = sorted(new.values())
        by_settings = {} if processor is None else _learned.setdefault(processor, {})
        learned = by_settings.setdefault(settings, Learned())
        part = getattr(processor, "image_processor", None)
        found = _measure(inputs, known, samples, repeat_call, learned, part)
        if found is None:
            return None
        fresh = {keys[i]: layouts for i, layouts in zip(samples, found, strict=True)}
        if len(memory) + len(fresh) > _MOST_REMEMBERED:
            fresh = {key: memory[key] for key in keys if key in memory} | fresh
            memory.clear()
        memory.update(fresh)
    return [memory[key] if known[i] else () for i, key in enumerate(keys)]


def _measure(
    inputs: LayoutInputs,
    images: Sequence[Sequence[Image]],
    samples: list[int],
    repeat_call: RepeatCall,
    learned: Learned,
    image_processor: Any,
) -> Layouts | None:
    chosen = [list(images[i]) for i in samples]
    tensors = inputs.tensors
    if len(samples) < len(images):
        tensors = repeat_call(chosen, samples)
    ids = tensors["input_ids"].cpu().numpy()
    positions = []
    for i, row in zip(samples, ids, strict=True):
        # Fewer samples need less padding, which stands on the left.
        visual = np.zeros(inputs.ids.shape[1], dtype=bool)
        visual[inputs.positions[i]] = True
        if not np.array_equal(inputs.ids[i, -len(row) :], row):
            return None
        positions.append(np.flatnonzero(visual[-len(row) :]))
    measured = replace(
        inputs,
        ids=ids,
        positions=tuple(positions),
        counts=tuple(map(len, chosen)),
        tensors=tensors,
        origins=MeasuredOrigins(repeat_call, chosen, samples, learned, image_processor, tensors),
    )
    return explain(measured)


def _settings(processor: Any) -> str:
    """Everything that changes what the image processor does, as text; made once until then."""
    part = getattr(processor, "image_processor", None)
    if part is None:
        return "{}"
    known = _written.get(processor)
    if known is None or known[0] is not part or known[1] != vars(part):
        text = json.dumps(part.to_dict(), default=str)
        known = _written[processor] = part, copy.deepcopy(vars(part)), text
    return known[2]
