"""Model-ready inputs together with the table of where their visual tokens are.

Token tensors have one row per sample, image tensors often one per tile or patch. Taking some
samples out of a batch takes exactly their images along, or is refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from ..anatomy.anatomy import Anatomy
from ..errors import InputError, Unsupported
from ..frozen_mapping import frozen
from ..token_classes import TokenClasses
from ..token_sets import TokenSet, checked_layers
from ..torch_settings import default_torch
from ..visual_tokens import VisualTokens
from .batch_html import batch_html
from .content import sample_content
from .processor import Remake
from .prompt_words import PromptWords
from .rows_per_sample import (
    Counts,
    SampleCounts,
    is_picture,
    pointed_rows,
    rows_per_sample,
    token_axis,
)


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
        images_per_row: Number of images of each sample.
        videos_per_row: Number of videos of each sample; empty when there are none.
        classes: Sink / dead / alive labels of the visual tokens, once known.
        remake: Makes the tensors of some samples anew; None when made from tensors.
        anatomy: Where things are in the model that this batch was made for.
        recorded: `contents` as a file recorded them; empty when they are found from the inputs.
        layer_classes: The labels in each layer, where they were given by layer.
        token_sets: Sets of tokens that selectors refer to by a name of one's own.
        words: Which token is which part of the prompt's text; None when made from tensors.
        scored: What selectors by score chose in a pass over this batch, ``[sample, token]``.
    """

    inputs: Mapping[str, Tensor]
    visual: VisualTokens
    prompts: tuple[str, ...]
    images: tuple[tuple[Image, ...], ...]
    images_per_row: tuple[int, ...] = field(default=())
    classes: TokenClasses | None = None
    videos_per_row: tuple[int, ...] = ()
    remake: Remake | None = field(default=None, repr=False)
    anatomy: Anatomy | None = field(default=None, repr=False)
    recorded: tuple[int, ...] = field(default=(), repr=False)
    layer_classes: Mapping[int, TokenClasses] = field(default_factory=dict, repr=False)
    token_sets: Mapping[str, TokenSet] = field(default_factory=dict, repr=False)
    words: PromptWords | None = field(default=None, repr=False)
    scored: Mapping[Hashable, NDArray[np.bool_]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("inputs", "layer_classes", "token_sets", "scored"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def __repr__(self) -> str:
        alive = "" if self.classes is None else f", {self.classes.mask('alive').mean():.0%} alive"
        samples = "sample" if len(self) == 1 else "samples"
        return (
            f"Batch({len(self)} {samples} × {self.length} tokens, {len(self.visual)} visual{alive})"
        )

    def _repr_html_(self) -> str:
        known = self.classes is not None and bool(self.classes.membership)
        shares = None if self.classes is None or not known else self.classes.shares()
        return batch_html(repr(self), self.images, self.prompts, self.visual.frame, shares)

    def __len__(self) -> int:
        return int(self.inputs["input_ids"].shape[0])

    def __getitem__(self, samples: SupportsIndex | slice) -> Batch:
        """One sample, or some, as a batch; see :meth:`subset`."""
        chosen = range(len(self))[samples]
        return self.subset(chosen if isinstance(chosen, range) else [chosen])

    @property
    def length(self) -> int:
        """Length of the padded sequences, in tokens."""
        return int(self.inputs["input_ids"].shape[1])

    @cached_property
    @default_torch()
    def contents(self) -> tuple[int, ...]:
        """A number for every sample that stands for its tokens and its pictures.

        The same wherever the sample stands in a batch, whatever else is in it and however it is
        padded. Where it cannot be told which pictures of a batch of tensors are a sample's, its
        tokens alone count.
        """
        if self.recorded:
            return self.recorded
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        return tuple(
            sample_content(ids[i], mask[i], self.images[i], self._only_tensors(i))
            for i in range(len(self))
        )

    def _only_tensors(self, sample: int) -> Mapping[str, Tensor]:
        """A sample's picture tensors whose pictures are not among its images."""
        names = [
            name
            for name, tensor in self.inputs.items()
            if token_axis(name, tensor, (len(self), self.length)) is None
            and is_picture(name, tensor)
            and ("video" in name or not self.images[sample])
        ]
        try:
            return self._pictures([sample], names)
        except Unsupported:
            return {}

    @property
    def real(self) -> NDArray[np.bool_]:
        """Positions that are not padding, ``[sample, token]``."""
        mask: NDArray[np.bool_] = self.inputs["attention_mask"].cpu().numpy() > 0
        return mask

    def with_classes(self, classes: TokenClasses | Mapping[int, TokenClasses]) -> Batch:
        """The same batch, with labels that selectors such as ``dead`` refer to.

        Args:
            classes: The labels; or by layer those of each, which operations then take in the layer
                they act in, and ``dead@3`` means by number.

        Raises:
            InputError: The labels are for another number of visual tokens, or a key is no layer.
        """
        by_layer: dict[int, TokenClasses] = {}
        if isinstance(classes, Mapping):
            by_layer = checked_layers(classes, "with_classes")
        for one in by_layer.values() if isinstance(classes, Mapping) else [classes]:
            if len(one) != len(self.visual):
                raise InputError(
                    f"these classes label {len(one)} tokens, the batch has {len(self.visual)} "
                    "visual tokens: classify this batch"
                )
        kept = self.classes if isinstance(classes, Mapping) else classes
        return replace(self, classes=kept, layer_classes=by_layer)

    def with_tokens(self, **sets: Any) -> Batch:
        """The same batch, with sets of tokens that selectors refer to by these names.

        ``batch.with_tokens(object=mask)`` makes ``object`` a selector, as ``dilate(object, 1)`` and
        ``visual & ~object`` are. A name that the batch has already gets the new tokens.

        Args:
            **sets: By name a boolean mask, ``[sample, token]`` over the sequences or ``[visual]``
                over the rows of ``batch.visual``; or ``{layer: mask}``, which operations then take
                in the layer they act in, and ``object@3`` means by number.

        Raises:
            InputError: A name that is a word of the selector language or close to one, no mask of
                these shapes, or one that holds padding.
        """
        made = {n: TokenSet.of(n, mask, self.real, self.visual) for n, mask in sets.items()}
        return replace(self, token_sets={**self.token_sets, **made})

    @default_torch()
    def subset(self, samples: Sequence[int]) -> Batch:
        """The batch of some of the samples, in the given order.

        Raises:
            InputError: A sample index outside the batch.
            Unsupported: It cannot be told which rows of an image tensor belong to which sample;
                encode the samples by themselves instead.
        """
        wanted = [int(i) for i in samples]
        if not wanted or any(not 0 <= i < len(self) for i in wanted):
            raise InputError(f"samples {wanted} of a batch of {len(self)}")
        inputs = {
            name: tensor.index_select(axis, torch.tensor(wanted, device=tensor.device))
            for name, tensor in self.inputs.items()
            if (axis := token_axis(name, tensor, (len(self), self.length))) is not None
        }
        inputs |= self._pictures(wanted, [name for name in self.inputs if name not in inputs])
        order = np.concatenate([np.flatnonzero(self.visual.sample == i) for i in wanted])
        visual = self.visual.select(order)
        counts = [int((self.visual.sample == i).sum()) for i in wanted]
        visual = replace(visual, sample=np.repeat(np.arange(len(wanted)), counts))
        made = self.remake
        return Batch(
            inputs,
            visual,
            tuple(self.prompts[i] for i in wanted),
            tuple(self.images[i] for i in wanted),
            tuple(self.images_per_row[i] for i in wanted),
            None if self.classes is None else self.classes.select(order),
            tuple(self.videos_per_row[i] for i in wanted) if self.videos_per_row else (),
            None if made is None else made.of(wanted),
            self.anatomy,
            tuple(self.recorded[i] for i in wanted) if self.recorded else (),
            {layer: classes.select(order) for layer, classes in self.layer_classes.items()},
            {name: held.select(wanted) for name, held in self.token_sets.items()},
            None if self.words is None else self.words.select(wanted),
            {selector: mask[wanted] for selector, mask in self.scored.items()},
        )

    def _pictures(self, wanted: list[int], names: list[str]) -> dict[str, Tensor]:
        """The image tensors of some samples."""
        owned = {
            name: rows_per_sample(name, self.inputs, self._sample_counts("video" in name))
            for name in names
        }
        unclear = [name for name, rows in owned.items() if rows is None]
        if unclear and self.remake is not None:
            made = self.remake(wanted)
            return {name: made[name].to(self.inputs[name]) for name in names if name in made}
        if unclear:
            raise Unsupported(
                f"{unclear[0]} {tuple(self.inputs[unclear[0]].shape)}: it cannot be told which of "
                f"its rows belong to which of {len(self)} samples with "
                f"{list(self.images_per_row)} images; make a batch of the wanted samples alone"
            )
        known = {name: rows for name, rows in owned.items() if rows is not None}
        taken = {
            name: torch.cat(self._parts(name, rows, known, wanted)) for name, rows in known.items()
        }
        # Samples without images have no image tensors.
        return {name: tensor for name, tensor in taken.items() if len(tensor)}

    def _parts(
        self, name: str, rows: Counts, known: Mapping[str, Counts], wanted: list[int]
    ) -> list[Tensor]:
        """One tensor's rows of each wanted sample, pointers made to point where they should."""
        tensor = self.inputs[name]
        pieces = torch.split(tensor, list(rows))
        parts = [pieces[i] for i in wanted]
        for target in known:
            pictures = self.inputs[target]
            if not is_picture(target, pictures) or ("video" in target) != ("video" in name):
                continue
            starts = pointed_rows(tensor, rows, pictures, known[target])
            if starts is None:
                continue
            lengths = [known[target][i] * pictures.shape[1] for i in wanted]
            begins = np.concatenate([[0], np.cumsum(lengths)])[:-1]
            return [
                torch.where(part >= 0, part - int(starts[i]) + int(begin), part)
                for part, i, begin in zip(parts, wanted, begins, strict=True)
            ]
        return parts

    def _sample_counts(self, videos: bool) -> SampleCounts:
        here = self.visual.image >= np.asarray(self.images_per_row)[self.visual.sample]
        here = here if videos else ~here
        samples = range(len(self))
        tokens = [here & (self.visual.sample == i) for i in samples]
        images = self.videos_per_row or (0,) * len(self) if videos else self.images_per_row
        units = (self.visual.image, self.visual.tile, self.visual.time)
        tiles = tuple(len({*zip(*(unit[mine] for unit in units), strict=True)}) for mine in tokens)
        return SampleCounts(images, tiles, tuple(int(mine.sum()) for mine in tokens))


def refuse_unencoded(batch: object) -> None:
    """Check that something is a batch and not what one is made of, or raise InputError."""
    if not isinstance(batch, Batch):
        raise InputError(
            f"this takes a batch, batch = model.encode(images, prompts), not {type(batch).__name__}"
        )
