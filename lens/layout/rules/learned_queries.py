"""Learned queries: visual tokens that look at the whole image and stand nowhere in it.

There are often as many of them as a square raster has cells (64, say). That they are queries is
known of the model, not seen in their number: this rule is for models that are known to have them.
"""

from __future__ import annotations

from ..layout import Block, Layout
from ..layout_inputs import LayoutInputs, Layouts
from ..measure.pixel_tensor import PixelTensor


def explain(inputs: LayoutInputs) -> Layouts | None:
    """As many queries for every image, or for every stretch of visual tokens."""
    if not inputs.are_latents:
        return None
    pixels = PixelTensor.of(inputs)
    counts = inputs.counts
    if counts is None and pixels is not None and pixels.holds_pictures and pixels.tensor.ndim == 4:
        # One picture per image; stretches of two images may touch.
        each, rest = divmod(inputs.total, len(pixels.tensor))
        if not rest:
            return _of_lengths(inputs, [each] * len(pixels.tensor))
    lengths = []
    for sample, positions in enumerate(inputs.positions):
        stretches = [len(stretch) for stretch in inputs.stretches(sample)]
        number = len(stretches) if counts is None else counts[sample]
        if number == len(stretches):
            lengths += stretches
        elif number and len(positions) % number == 0:
            lengths += [len(positions) // number] * number
        else:
            return None
    return _of_lengths(inputs, lengths)


def _of_lengths(inputs: LayoutInputs, lengths: list[int]) -> Layouts | None:
    return inputs.per_sample([Layout((Block(1, length, kind="latent"),)) for length in lengths])
