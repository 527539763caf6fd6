"""The tensor that holds what the vision tower sees, and the pictures that it is made of.

Padding to a common number of tiles looks like a tile: it is told apart here, once, for all rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..layout_inputs import LayoutInputs
from .pixel_origins import PixelOrigins

CHANNELS = (1, 3)


@dataclass(frozen=True, eq=False)
class PixelTensor:
    """A pixel tensor and what is known of it."""

    tensor: Tensor  # pictures ``[..., channel, height, width]`` or patches ``[..., patch, value]``
    origins: PixelOrigins | None  # what its elements show, where the processor could be asked

    @classmethod
    def of(cls, inputs: LayoutInputs) -> PixelTensor | None:
        """The pixel tensor of the images, or of the videos."""
        named = [
            name
            for name, tensor in inputs.tensors.items()
            if tensor.is_floating_point()
            and tensor.ndim >= 2
            and ("video" in name) == inputs.are_videos
            and "mask" not in name
        ]
        if not named:
            return None
        # A processor that makes several (a coarse and a fine one) names the main one shortest.
        name = min(named, key=lambda n: ("pixel_values" not in n, len(n)))
        origins = None if inputs.origins is None else inputs.origins[name]
        if origins is not None and origins.x.shape != tuple(inputs.tensors[name].shape):
            origins = None
        return cls(inputs.tensors[name], origins)

    @property
    def holds_pictures(self) -> bool:
        """Whether the tensor holds pictures; otherwise it holds patches."""
        return self.tensor.ndim >= 4 and self.tensor.shape[-3] in CHANNELS

    def real_pictures(self) -> list[tuple[int, ...]]:
        """Indices of the pictures that are not padding, in order."""
        leading = self.tensor.shape[:-3]
        if self.origins is not None:
            real = self.origins.owners(len(leading)) >= 0
        elif len(leading) > 1:
            # The padding of a ragged number of tiles is all zeros.
            real = (self.tensor.flatten(-3) != 0).any(dim=-1).cpu().numpy()
        else:
            real = np.ones(tuple(leading), dtype=bool)
        return [tuple(int(i) for i in index) for index in np.argwhere(real)]

    def owners(self) -> NDArray[np.int32] | None:
        """The image of each of :meth:`real_pictures`, counted through the batch."""
        if self.origins is None:
            return None
        owners = self.origins.owners(self.tensor.ndim - 3)
        return owners[owners >= 0]
