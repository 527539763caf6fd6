"""Places by one painting in colours, or by a rule, are those read off four in grey, everywhere."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedlens import VisualLM
from embedlens.lens.inputs.processor import ProcessorAdapter
from embedlens.lens.layout.measure import measured_layouts
from embedlens.lens.visual_tokens import VisualTokens
from families import zoo
from families.family import FAMILIES, noise

FIRST = (120, 90)
# What is new to a processor that has seen the first: large, thin, and sides without a divisor.
SIZES = ((90, 120), (97, 61), (64, 64), (150, 333), (301, 200), (640, 123), (131, 488))
NEAR, SLACK = 0.05, 0.05  # of a cell, and pixels of the image
# One size of its tiles has none that light reaches everywhere.
MEASURED_ANEW = ("phi4_multimodal",)
# Their image processors make something else, or nothing, without what the processor tells them.
WITH_TEXT = ("aya_vision", "fuyu", "internvl", "mistral3")
PROCESSED = tuple(
    name
    for name in sorted(set(FAMILIES) - set(zoo.REFUSED) - {"git"})
    if zoo.built(name).processor is not None
)


@contextmanager
def nothing_known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for memory in ("_memories", "_learned"):
            patch.setattr(measured_layouts, memory, weakref.WeakKeyDictionary())
        yield


@contextmanager
def counted_calls() -> Iterator[list[int]]:
    """How many samples each call of the processor was for."""
    calls: list[int] = []
    usual = ProcessorAdapter.run

    def run(self: ProcessorAdapter, texts: list[str], *pictures: Any) -> Any:
        calls.append(len(texts))
        return usual(self, texts, *pictures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessorAdapter, "run", run)
        yield calls


def seen(model: VisualLM, name: str, *images: Image.Image) -> VisualTokens:
    return model.encode(
        [[image] for image in images], [zoo.built(name).prompt] * len(images)
    ).visual


@pytest.mark.quick("llava", "qwen2_5_vl")
@pytest.mark.parametrize("name", PROCESSED)
def test_new_sizes_are_placed_as_by_measuring_anew(name: str) -> None:
    model, compared, calls = zoo.visual_lm(name), 0, []
    expected = {}
    for size in SIZES:
        with nothing_known():
            try:
                expected[size] = seen(model, name, noise(size))
            except Exception as error:  # whatever a processor refuses of odd sizes
                expected[size] = error
    with nothing_known():
        seen(model, name, noise(FIRST))
        for size, visual in expected.items():
            if not isinstance(visual, VisualTokens):
                continue
            with counted_calls() as made:
                found = seen(model, name, noise(size))
            calls.append(len(made))
            for field in ("position", "image", "tile", "time", "row", "col"):
                np.testing.assert_array_equal(getattr(found, field), getattr(visual, field))
            cell = np.tile(visual.box[:, 2:] - visual.box[:, :2], 2)
            assert not (np.abs(found.box - visual.box) > NEAR * cell + SLACK).any()
            np.testing.assert_array_equal(np.isnan(found.box), np.isnan(visual.box))
            compared += 1
    assert compared >= 6
    # Where a rule is known the image is not painted at all.
    most = 1 + (name in WITH_TEXT)
    assert calls[0] == most or name in MEASURED_ANEW, calls
    assert {1, most} >= set(calls) or name in MEASURED_ANEW, calls
