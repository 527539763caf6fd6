"""Model-ready inputs together with the table of where their visual tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from PIL.Image import Image
from torch import Tensor

from .classes import TokenClasses
from .errors import InputError
from .visual_tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class Batch:
    """What a forward pass takes, for one or more samples, left-padded to one length.

    Attributes:
        inputs: Tensors for the model: at least ``input_ids`` and ``attention_mask``, both
            ``[sample, token]``, and the image tensors.
        visual: Where every visual token is.
        prompts: The prompt text of every sample as the model sees it, placeholders included;
            empty strings when the batch was made from tensors.
        images: Per sample its images, or empty tuples when made from tensors.
        classes: Sink / dead / alive labels of the visual tokens, once known.
    """

    inputs: Mapping[str, Tensor]
    visual: VisualTokens
    prompts: tuple[str, ...]
    images: tuple[tuple[Image, ...], ...]
    images_per_row: tuple[int, ...] = field(default=())
    classes: TokenClasses | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", MappingProxyType(dict(self.inputs)))

    def __len__(self) -> int:
        return int(self.inputs["input_ids"].shape[0])

    @property
    def length(self) -> int:
        """Length of the padded sequences, in tokens."""
        return int(self.inputs["input_ids"].shape[1])

    def with_classes(self, classes: TokenClasses) -> Batch:
        """The same batch, with labels that selectors such as ``dead`` refer to.

        Raises:
            InputError: The labels are for another number of visual tokens.
        """
        if len(classes) != len(self.visual):
            raise InputError(
                f"these classes label {len(classes)} tokens, the batch has {len(self.visual)} "
                "visual tokens: classify this batch"
            )
        return replace(self, classes=classes)

    def subset(self, samples: Sequence[int]) -> Batch:
        """The batch of some of the samples, in the given order.

        Raises:
            InputError: A sample index outside the batch.
        """
        wanted = list(samples)
        if not wanted or any(not 0 <= i < len(self) for i in wanted):
            raise InputError(f"samples {wanted} of a batch of {len(self)}")
        starts = np.concatenate([[0], np.cumsum(self.images_per_row)]).astype(int)
        image_rows = [r for i in wanted for r in range(starts[i], starts[i + 1])]
        # Token tensors have one row per sample, image tensors one row per image.
        inputs = {
            name: tensor[wanted]
            if tensor.shape[:2] == (len(self), self.length)
            else tensor[image_rows]
            for name, tensor in self.inputs.items()
        }
        order = np.concatenate([np.flatnonzero(self.visual.sample == i) for i in wanted])
        visual = self.visual.select(order)
        counts = [int((self.visual.sample == i).sum()) for i in wanted]
        visual = replace(visual, sample=np.repeat(np.arange(len(wanted)), counts))
        return Batch(
            inputs,
            visual,
            tuple(self.prompts[i] for i in wanted),
            tuple(self.images[i] for i in wanted),
            tuple(self.images_per_row[i] for i in wanted),
            None if self.classes is None else self.classes.select(order),
        )
