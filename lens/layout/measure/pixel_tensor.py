"""The tensor that holds what the vision tower sees, and the units that it is made of.

Padding to a common number of tiles looks like a tile. It is told apart here, once, for all rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..layout_inputs import Evidence
from .painted_images import View

CHANNELS = (1, 3)


@dataclass(frozen=True, eq=False)
class Pixels:
    """A pixel tensor and what is known of it.

    Attributes:
        tensor: Pictures ``[..., channel, height, width]`` or patches ``[..., patch, value]``.
        view: What its elements show, where the processor could be asked.
    """

    tensor: Tensor
    view: View | None

    @classmethod
    def of(cls, evidence: Evidence) -> Pixels | None:
        """The pixel tensor of the images, or of the videos."""
        named = [
            name
            for name, tensor in evidence.tensors.items()
            if tensor.is_floating_point()
            and tensor.ndim >= 2
            and ("video" in name) == evidence.video
            and "mask" not in name
        ]
        if not named:
            return None
        # A processor that makes several (a coarse and a fine one) names the main one shortest.
        name = min(named, key=lambda n: ("pixel_values" not in n, len(n)))
        view = None if evidence.views is None else evidence.views[name]
        if view is not None and view.x.shape != tuple(evidence.tensors[name].shape):
            view = None
        return cls(evidence.tensors[name], view)

    @property
    def pictures(self) -> bool:
        """Whether the tensor holds pictures; otherwise it holds patches."""
        return self.tensor.ndim >= 4 and self.tensor.shape[-3] in CHANNELS

    def units(self) -> list[tuple[int, ...]]:
        """Indices of the pictures that are not padding, in order."""
        leading = self.tensor.shape[:-3]
        if self.view is not None:
            real = self.view.owners(len(leading)) >= 0
        elif len(leading) > 1:
            # The padding of a ragged number of tiles is all zeros.
            real = (self.tensor.flatten(-3) != 0).any(dim=-1).cpu().numpy()
        else:
            real = np.ones(tuple(leading), dtype=bool)
        return [tuple(int(i) for i in index) for index in np.argwhere(real)]

    def owners(self) -> NDArray[np.int32] | None:
        """The image of every unit of :meth:`units`, counted through the batch."""
        if self.view is None:
            return None
        owners = self.view.owners(self.tensor.ndim - 3)
        return owners[owners >= 0]
