"""What a batch tells about its layout: the only thing that rules may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .layout import Layout
from .measure.painted_images import Views

Explanation = Sequence[Sequence[Layout]]
"""Per sample the layout of each of its images."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything known of the images (or of the videos) of one batch.

    Attributes:
        ids: Token ids, ``[sample, token]``.
        positions: Per sample the positions of its visual tokens, ascending.
        counts: Images per sample, where that is known.
        tensors: The inputs of the model.
        config: The configuration of the model.
        text_of: The text of one token id, where there is a tokenizer.
        views: What the processor makes of the images, where it can be asked.
        video: Whether these are videos.
        latents: Whether the model's visual tokens are learned queries.
    """

    ids: NDArray[np.int64]
    positions: tuple[NDArray[np.int64], ...]
    counts: tuple[int, ...] | None
    tensors: Mapping[str, Tensor]
    config: Any
    text_of: Callable[[int], str] | None = None
    views: Views | None = None
    video: bool = False
    latents: bool = False

    @property
    def total(self) -> int:
        """Visual tokens in the batch."""
        return sum(map(len, self.positions))

    def runs(self, sample: int) -> list[NDArray[np.int64]]:
        """The uninterrupted stretches of visual tokens of one sample."""
        positions = self.positions[sample]
        if not len(positions):
            return []
        return np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)

    def deal(self, layouts: Sequence[Layout]) -> Explanation | None:
        """Give the layouts of all images of the batch, in order, to the samples.

        Returns:
            None when the numbers of tokens or of images do not match exactly.
        """
        left, dealt = list(layouts), []
        for sample, positions in enumerate(self.positions):
            mine: list[Layout] = []
            while sum(map(len, mine)) < len(positions) and left:
                mine.append(left.pop(0))
            if sum(map(len, mine)) != len(positions):
                return None
            if self.counts is not None and self.counts[sample] != len(mine):
                return None
            dealt.append(mine)
        return None if left else dealt

    def setting(self, *names: str) -> Any:
        """The first of these settings that the configuration or its vision part has."""
        for part in (self.config, getattr(self.config, "vision_config", None)):
            for name in names:
                value = getattr(part, name, None)
                if value is not None:
                    return value
        return None


def integers(tensor: Tensor) -> list[list[int]]:
    """A tensor of whole numbers ``[..., k]`` as a list of rows."""
    rows: list[list[int]] = tensor.reshape(-1, tensor.shape[-1]).long().tolist()
    return rows


def only(items: Iterable[int]) -> int | None:
    """The one value that all items have, or None."""
    distinct = set(items)
    return distinct.pop() if len(distinct) == 1 else None
