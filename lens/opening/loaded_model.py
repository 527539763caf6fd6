"""A transformers model in memory, verified first, and only then put under nnsight.

A model that is refused should not have been touched, so nnsight goes around it last. And an anatomy
found on text alone knows nothing of how the image enters: where the processor makes no image to
verify it with, the first batch that has one serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any

import torch
from nnsight.intervention.envoy import Envoy
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from ..anatomy.anatomy import Anatomy
from ..anatomy.decoder_parts import IMAGE_IDS, VIDEO_IDS, locate_parts, takes_images, token_id
from ..anatomy.embedded_ids import check_ids
from ..anatomy.recorded_forward import forward_parameters
from ..anatomy.visual_entry import claimed_positions
from ..errors import EmbedlensError, InputError, NotFinite, Unsupported
from ..inputs.batch import Batch
from ..inputs.encoder import Encoder
from ..inputs.probe_prompt import has_image, probe_inputs
from ..loading import Checkpoint
from ..runs.remote import WEIGHTS_ON_SERVER
from ..runs.tracing import without_cache
from ..runs.undisturbed import undisturbed
from .invented_weights import same_facts
from .placement import brought_weight, device_of, dtype_of, placed, refuse_without_values
from .present_state import Structure
from .wrapping import release, wrap


class Stage(Enum):
    """How far a model has been opened."""

    UNLOADED = "weights not loaded yet"
    UNVERIFIED = "not verified yet: text alone does not do, and no image was seen"
    VERIFIED = "verified, on text at least"


class LoadedModel:
    """A transformers model with all that embedlens knows about it.

    The processor is our own copy; the envoy the user's nnsight model around it, the checkpoint
    where it comes from, if any; ``overrides`` are arguments for :meth:`Anatomy.of`.

    Attributes:
        hf: The transformers model.
        encoder: Makes batches for it.
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
        self._checkpoint = checkpoint
        if self._on_server:
            WEIGHTS_ON_SERVER.add(hf)
        else:
            refuse_without_values(hf)
        self._overrides = dict(overrides)
        self._anatomy: Anatomy | None = None
        self._refusal: Exception | None = None
        # What it was verified on.
        self._probe: Mapping[str, Tensor] | None = None
        self.encoder = Encoder(
            processor, hf.config, accepts=forward_parameters(hf), forward=self._logits
        )
        probe = None if processor is None else probe_inputs(self.encoder)
        if probe is not None:
            self._verify(self.place(probe))
        else:
            self._verify_on_text()
        self._processor, self._given = processor, envoy is not None
        self._nn: Any = self._wrapped() if envoy is None else envoy
        self._structure = Structure(hf)

    @property
    def nn(self) -> Any:
        """The nnsight model; made anew, and verified, where modules have been replaced since.

        Raises:
            InputError: They have, and the nnsight model is the user's own.
            Unsupported: What is there now could not be verified.
        """
        if not self._structure.is_of(self.hf):
            if self._given:
                raise InputError(
                    f"modules of {type(self.hf).__name__}, or their forward, were replaced after "
                    "nnsight had wrapped it: wrap it again, and open that with VisualLM"
                )
            release(self.hf)
            self._verify(None if self._probe is None else self.place(self._probe))
            self._nn = self._wrapped()
            self._structure = Structure(self.hf)
        return self._nn

    def _wrapped(self) -> Any:
        made = wrap(self.hf, self._processor)
        if self._checkpoint is not None:
            # A server tells revisions of a model apart.
            made.revision = self._checkpoint.revision
        return made

    @property
    def stage(self) -> Stage:
        """Whether the model is verified."""
        return Stage.UNVERIFIED if self._anatomy is None else Stage.VERIFIED

    @property
    def anatomy(self) -> Anatomy:
        """Where things are in the model."""
        if self._anatomy is None:
            raise Unsupported(
                f"{type(self.hf).__name__} could not be verified on text alone ({self._refusal}): "
                "make a batch of one prompt with an image first"
            )
        return self._anatomy

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device that the input embedding computes on."""
        if self._on_server:
            return torch.device("cpu")
        return device_of(self.hf.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the model computes: the embedding's, or the model's if quantised."""
        if self._checkpoint is not None and self._checkpoint.dtype is not None:
            return self._checkpoint.dtype
        return dtype_of(self.hf, self.hf.get_input_embeddings())

    @torch.no_grad()
    def embedding_matrix(self) -> Tensor:
        """The rows of the input embedding: its weight, or what it returns where that is not all."""
        module = self.hf.get_submodule(self.anatomy.embedding)
        held: Tensor = module.weight
        own = "weight" in module._parameters or is_parametrized(module, "weight")
        if own and not held.is_meta and held.is_floating_point():
            return held
        ids = torch.arange(len(held), device=device_of(module))
        with undisturbed(module):
            if own and hasattr(module, "_hf_hook") and held.is_meta:
                return brought_weight(module, ids[:1])
            rows: Tensor = module(ids)
        return rows / self.anatomy.embedding_scale

    def place(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs on the model's device, and in its types where they are real numbers."""
        if self._on_server:
            types = {n: self.dtype for n, tensor in inputs.items() if tensor.is_floating_point()}
            return {n: tensor.to("cpu", types.get(n)) for n, tensor in inputs.items()}
        return placed(self.hf, inputs)

    def place_batch(self, batch: Batch) -> Batch:
        """The batch with its inputs in place, for this model."""
        return replace(batch, inputs=self.place(batch.inputs), anatomy=self._anatomy)

    def verify_on_inputs(self, inputs: Mapping[str, Tensor]) -> None:
        """Verify on tensors of the user's, if no image was seen yet and they are of one."""
        name = type(self.hf).__name__
        if self._anatomy is not None and self._anatomy.seen_image:
            return
        if len(inputs.get("input_ids", ())) != 1 or not has_image(inputs):
            if self._anatomy is not None:
                return
            raise InputError(
                f"the first batch of {name} must be one prompt with an image, because the model "
                f"is verified on it ({self._refusal})"
            )
        try:
            self._verify(self.place(inputs))
        except EmbedlensError:
            raise
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise InputError(f"{name} cannot run these tensors: {error}") from error

    def verify_on_batch(self, batch: Batch) -> bool:
        """Verify on the first sample with an image, if no image was seen yet: whether it was."""
        samples = batch.visual.sample
        if self.anatomy.seen_image or not has_image(batch.inputs) or not len(samples):
            return False
        one = batch if len(batch) == 1 else batch.subset([int(samples[0])])
        self._verify(self.place(one.inputs))
        return True

    @property
    def _on_server(self) -> bool:
        return self._checkpoint is not None and self._checkpoint.load_other is not None

    @torch.no_grad()
    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with undisturbed(self.hf):
            logits: Tensor = self.hf(**self.place(inputs), **without_cache(self.hf)).logits
        return logits

    def _verify(self, inputs: Mapping[str, Tensor] | None) -> None:
        if self._on_server and inputs is not None:
            inputs = {n: t.float() if t.is_floating_point() else t for n, t in inputs.items()}
        if inputs is not None:
            claims = [self._overrides.get(f"{kind}_token_id") for kind in ("image", "video")]
            claims += [token_id(self.hf, names) for names in (IMAGE_IDS, VIDEO_IDS)]
            self._check_ids(inputs, tuple(i for i in claims if i is not None))
        try:
            with undisturbed(self.hf), torch.no_grad():
                self._anatomy = Anatomy.of(self.hf, inputs, **self._overrides)
        except (IndexError, RuntimeError) as error:
            if inputs is not None:
                # This model looks its placeholders up, too.
                self._check_ids(inputs, ())
            if any(weight.is_meta for weight in self.hf.parameters()):
                raise Unsupported(
                    f"{type(self.hf).__name__} does not run with its weights offloaded (it takes "
                    f"one where no hook brings it: {error}): load it without offloading"
                ) from error
            raise
        self._probe = inputs
        self.encoder.anatomy = self._anatomy
        if self._on_server and self._anatomy.seen_image:
            self._verify_without_weights(inputs)

    def _check_ids(self, inputs: Mapping[str, Tensor], placeholders: tuple[int, ...]) -> None:
        """Refuse ids without a row in the embedding, except placeholders."""
        rows = int(self.hf.get_input_embeddings().weight.shape[0])
        excepted = partial(claimed_positions, inputs, placeholders)
        check_ids(inputs["input_ids"], rows, self.encoder.tokenizer, excepted)

    def _verify_without_weights(self, inputs: Mapping[str, Tensor] | None) -> None:
        """Make sure that no weight had a say in the anatomy, and let go of the invented ones."""
        assert self._checkpoint is not None
        assert self._checkpoint.load_other is not None
        other = self._checkpoint.load_other()
        with torch.no_grad():
            second = Anatomy.of(other, inputs, **self._overrides)
        if differs := same_facts(self.anatomy, second):
            raise Unsupported(
                f"{differs.replace('_', ' ')} of {type(self.hf).__name__} depends on its trained "
                "weights, which are on the server: it cannot be known here without them "
                "(VisualLM.load(name) loads them)"
            )
        self.hf.to("meta")

    def _verify_on_text(self) -> None:
        try:
            self._verify(None)
        except NotFinite:
            raise
        # Whatever a forward raises that cannot do without an image.
        except Exception as error:
            if not takes_images(self.hf):
                raise
            # What no image would mend is said at once.
            given = {name: self._overrides.get(name) for name in ("decoder", "norm", "head")}
            locate_parts(self.hf, **given)
            self._refusal = error
