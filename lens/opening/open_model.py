"""A model in memory, taken in use: verified first, and only then wrapped.

The hazard: a model that is refused should not have been touched, so nnsight goes around it last.
And an anatomy found on text alone knows nothing of how the image enters: where no image can be made
to verify it with, the first batch that has one serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from nnsight.intervention.envoy import Envoy
from torch import Tensor

from ..anatomy.anatomy import Anatomy
from ..anatomy.parts import locate_parts, takes_images
from ..anatomy.recorded_forward import forward_parameters
from ..errors import InputError, Unsupported
from ..inputs.batch import Batch
from ..inputs.encoder import Encoder, Stated
from ..inputs.images import Images, Videos
from ..inputs.probe_prompt import has_image, probe_inputs
from ..runs.remote import ELSEWHERE
from ..runs.tracing import device_of, undisturbed, without_cache
from .checkpoint import Checkpoint
from .invented_weights import same_facts
from .wrapping import wrap


class OpenModel:
    """A transformers model with all that embedlens knows about it.

    Args:
        hf: The transformers model.
        processor: A processor of our own, or None.
        envoy: The user's nnsight model around it, if there is one.
        overrides: Arguments for :meth:`Anatomy.of`.
        checkpoint: Where the model comes from, if it was loaded by name.

    Attributes:
        hf: The transformers model.
        nn: The nnsight model around it.
    """

    def __init__(
        self,
        hf: Any,
        processor: Any,
        envoy: Envoy | None,
        overrides: Mapping[str, Any],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.hf = hf
        self._again = None if checkpoint is None else checkpoint.again
        if self._again is not None:
            ELSEWHERE.add(hf)
        self._dtype = None if checkpoint is None else checkpoint.dtype
        self._overrides = dict(overrides)
        self._anatomy: Anatomy | None = None
        self._blind: Exception | None = None
        self._encoder = Encoder(
            processor, hf.config, accepts=forward_parameters(hf), forward=self._logits
        )
        probe = None if processor is None else probe_inputs(self._encoder)
        if probe is not None:
            self._verify(self.place(probe))
        else:
            self._verify_blindly()
        self.nn: Any = wrap(hf, processor) if envoy is None else envoy

    @staticmethod
    def of(checkpoint: Checkpoint, processor: Any, overrides: Mapping[str, Any]) -> OpenModel:
        """A checkpoint's model, its weights loaded now unless they are on a server."""
        opened = OpenModel(checkpoint.read(), processor, None, overrides, checkpoint)
        # A server tells revisions of a model apart.
        opened.nn.revision = checkpoint.revision
        return opened

    @property
    def anatomy(self) -> Anatomy:
        """Where things are in the model.

        Raises:
            Unsupported: It could not be told from text alone, and no image was seen yet.
        """
        if self._anatomy is None:
            raise Unsupported(
                f"{type(self.hf).__name__} could not be verified on text alone ({self._blind}): "
                "make a batch of one prompt with an image first"
            )
        return self._anatomy

    @property
    def placeholder(self) -> str:
        """See :attr:`VisualLM.image_placeholder`."""
        return self._encoder.placeholder

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device that the input embedding computes on."""
        if self._again is not None:
            return torch.device("cpu")
        return device_of(self.hf.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the model computes: the embedding's, or the model's if quantised."""
        if self._dtype is not None:
            return self._dtype
        held = self.hf.get_input_embeddings().weight.dtype
        dtype: torch.dtype = held if held.is_floating_point else self.hf.dtype
        return dtype

    def place(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs on the model's device, and in its type where they are real numbers."""
        return {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }

    def encode(
        self,
        images: Images | None,
        prompts: str | Sequence[str],
        videos: Videos | None,
        template: bool | None,
        layout: Stated | None = None,
    ) -> Batch:
        """See :meth:`VisualLM.encode`."""
        if self._anatomy is None:
            self._first_sight(self._encoder.tensors(images, prompts, videos, template)[0])
        batch = self._encoder.encode(images, prompts, videos, template, layout)
        self._see(batch)
        return replace(batch, inputs=self.place(batch.inputs), anatomy=self._anatomy)

    def batch(self, inputs: Mapping[str, Tensor], layout: Stated | None = None) -> Batch:
        """See :meth:`VisualLM.batch`."""
        if self._anatomy is None:
            self._first_sight(inputs)
        try:
            batch = self._encoder.batch(inputs, layout)
        except InputError:
            # An anatomy that has seen no image may not know how visual tokens are marked.
            if self.anatomy.seen_image or not _one_with_image(inputs):
                raise
            self._first_sight(inputs)
            batch = self._encoder.batch(inputs, layout)
        if self._see(batch):
            # Which tokens are visual is only certain now.
            batch = self._encoder.batch(inputs, layout)
        return replace(batch, inputs=self.place(batch.inputs), anatomy=self._anatomy)

    def _first_sight(self, inputs: Mapping[str, Tensor]) -> None:
        """Verify on tensors of the user's that nothing could be checked against yet."""
        name = type(self.hf).__name__
        if not _one_with_image(inputs):
            raise InputError(
                f"the first batch of {name} must be one prompt with an image, because the model "
                f"is verified on it ({self._blind})"
            )
        try:
            self._verify(self.place(inputs))
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise InputError(f"{name} cannot run these tensors: {error}") from error

    def _see(self, batch: Batch) -> bool:
        """Verify on the first sample with an image, if that is still to be done."""
        samples = batch.visual.sample
        if self.anatomy.seen_image or not has_image(batch.inputs) or not len(samples):
            return False
        one = batch if len(batch) == 1 else batch.subset([int(samples[0])])
        self._verify(self.place(one.inputs))
        return True

    @torch.no_grad()
    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with undisturbed(self.hf):
            logits: Tensor = self.hf(**self.place(inputs), **without_cache(self.hf)).logits
        return logits

    def _verify(self, inputs: Mapping[str, Tensor] | None) -> None:
        if self._again is not None and inputs is not None:
            inputs = {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}
        with undisturbed(self.hf), torch.no_grad():
            self._anatomy = Anatomy.of(self.hf, inputs, **self._overrides)
        self._encoder.anatomy = self._anatomy
        if self._again is not None and self._anatomy.seen_image:
            self._measure_again(self._again(), inputs)

    def _measure_again(self, other: Any, inputs: Mapping[str, Tensor] | None) -> None:
        """Make sure that no weight had a say in the anatomy, and let go of the invented ones."""
        with torch.no_grad():
            second = Anatomy.of(other, inputs, **self._overrides)
        if differs := same_facts(self.anatomy, second):
            raise Unsupported(
                f"{differs.replace('_', ' ')} of {type(self.hf).__name__} depends on its trained "
                "weights, which are on the server: it cannot be known here without them "
                "(VisualLM.load(name) loads them)"
            )
        self.hf.to("meta")

    def _verify_blindly(self) -> None:
        try:
            self._verify(None)
        # Whatever a forward raises that cannot do without an image.
        except Exception as error:
            if not takes_images(self.hf):
                raise
            # What no image would mend is said at once.
            given = {name: self._overrides.get(name) for name in ("decoder", "norm", "head")}
            locate_parts(self.hf, **given)
            self._blind = error


def _one_with_image(inputs: Mapping[str, Tensor]) -> bool:
    return len(inputs.get("input_ids", ())) == 1 and has_image(inputs)
