"""Learned queries: visual tokens that look at the whole image and stand nowhere in it.

There are often as many of them as a square raster has cells (64, say). That they are queries is
known of the model, not seen in their number, so this rule alone speaks when the model says so.
"""

from __future__ import annotations

from ..layout import Block, Layout
from ..layout_inputs import Evidence, Explanation
from ..measure.pixel_tensor import Pixels


def explain(evidence: Evidence) -> Explanation | None:
    """As many queries for every image, or for every stretch of visual tokens."""
    if not evidence.latents:
        return None
    pixels = Pixels.of(evidence)
    counts = evidence.counts
    if counts is None and pixels is not None and pixels.pictures and pixels.tensor.ndim == 4:
        # One picture per image; stretches of two images may touch.
        each, rest = divmod(evidence.total, len(pixels.tensor))
        if not rest:
            return _shared(evidence, [each] * len(pixels.tensor))
    lengths = []
    for sample, positions in enumerate(evidence.positions):
        runs = [len(run) for run in evidence.runs(sample)]
        number = len(runs) if counts is None else counts[sample]
        if number == len(runs):
            lengths += runs
        elif number and len(positions) % number == 0:
            lengths += [len(positions) // number] * number
        else:
            return None
    return _shared(evidence, lengths)


def _shared(evidence: Evidence, lengths: list[int]) -> Explanation | None:
    return evidence.deal([Layout((Block(1, length, kind="latent"),)) for length in lengths])
