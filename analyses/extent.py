"""How much an analysis would look at: what the number of its passes depends on."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """The size of a report's material.

    Attributes:
        images: Images, each asked about once.
        at_once: Of these, in one pass.
        layers: Of the decoder.
        classes: Classes that the images have tokens of.
        text: The text bank, in tokens per token of a prompt with its image.
    """

    images: int
    at_once: int
    layers: int
    classes: int
    text: float

    @property
    def first(self) -> int:
        """Images of the first pass."""
        return min(self.images, self.at_once)


Passes = Callable[[Extent], float]
"""How many passes of one prompt through all layers an analysis takes, about.

A pass that begins at a later layer counts the layers that it goes through.
"""


def a_few(extent: Extent) -> float:
    """Three passes over every image: of an analysis that does not say."""
    return 3.0 * extent.images
