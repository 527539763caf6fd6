"""What a batch tells about its layout: the only thing that rules may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from .layout import Layout
from .measure.painted_images import MeasuredOrigins

Layouts = Sequence[Sequence[Layout]]
"""Per sample the layout of each of its images."""


@dataclass(frozen=True, eq=False)
class LayoutInputs:
    """Everything known of the images (or of the videos) of one batch."""

    ids: NDArray[np.int64]  # token ids, ``[sample, token]``
    positions: tuple[NDArray[np.int64], ...]  # per sample, of its visual tokens, ascending
    counts: tuple[int, ...] | None  # images per sample, where that is known
    tensors: Mapping[str, Tensor]  # the inputs of the model
    config: Any  # the configuration of the model
    text_of: Callable[[int], str] | None = None  # text of a token id, where there is a tokenizer
    # Which place of which image arrives where, if the processor can be asked
    origins: MeasuredOrigins | None = None
    are_videos: bool = False  # whether these are videos
    are_latents: bool = False  # whether the model's visual tokens are learned queries

    @property
    def total(self) -> int:
        """Visual tokens in the batch."""
        return sum(map(len, self.positions))

    def stretches(self, sample: int) -> list[NDArray[np.int64]]:
        """The uninterrupted stretches of visual tokens of one sample, as positions."""
        positions = self.positions[sample]
        if not len(positions):
            return []
        return np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)

    def per_sample(self, layouts: Sequence[Layout]) -> Layouts | None:
        """Share the layouts of all images of the batch, in order, out to the samples.

        None when the numbers of tokens or of images do not match exactly.
        """
        remaining, shared = list(layouts), []
        for sample, positions in enumerate(self.positions):
            own: list[Layout] = []
            while sum(map(len, own)) < len(positions) and remaining:
                own.append(remaining.pop(0))
            if sum(map(len, own)) != len(positions):
                return None
            if self.counts is not None and self.counts[sample] != len(own):
                return None
            shared.append(own)
        return None if remaining else shared

    def setting(self, name: str) -> Any:
        """A setting of the configuration or else of its vision part; None where neither has it."""
        value = getattr(self.config, name, None)
        vision = getattr(self.config, "vision_config", None)
        return getattr(vision, name, None) if value is None else value


def integers(tensor: Tensor) -> list[list[int]]:
    """A tensor of whole numbers ``[..., k]`` as a list of rows."""
    rows: list[list[int]] = rearrange(tensor, "... k -> (...) k").long().tolist()
    return rows
