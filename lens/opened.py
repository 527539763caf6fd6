"""A model, opened: what it is, what belongs to it, and where things are in it.

The hazard: weights may be loaded late, or never here at all, so nothing about a model may be asked
before it is open, and whoever asks first has to open it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .anatomy.anatomy import Anatomy
from .errors import InputError, Unsupported
from .opening.checkpoint import Checkpoint, open_checkpoint
from .opening.open_model import OpenModel
from .opening.wrapping import NO_PROCESSOR, envoy_path, origin_of, own_processor, unwrapped
from .runs.remote import need_weights

M = TypeVar("M", bound="Opened")


class Opened:
    """What a :class:`VisualLM` is before anything is run; it documents the arguments."""

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        name: str | None = None,
        anatomy: Mapping[str, Any] | None = None,
    ) -> None:
        self._overrides = dict(anatomy or {})
        self._opened: OpenModel | None = None
        self._unseen = False
        self._checkpoint = model if isinstance(model, Checkpoint) else None
        if isinstance(model, Checkpoint):
            self._processor = model.processor if processor is None else processor
            self.name = name or model.name
            return
        hf, envoy = unwrapped(model)
        self.name = name or origin_of(hf) or type(hf).__name__
        self._processor = own_processor(processor, hf, envoy)
        self._opened = OpenModel(hf, self._processor, envoy, self._overrides)

    @classmethod
    def load(
        cls: type[M],
        name: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        lazy: bool = False,
        remote: bool = False,
        anatomy: Mapping[str, Any] | None = None,
        **from_pretrained: Any,
    ) -> M:
        """Load a model by name.

        Args:
            name: Hub id or local folder; None is the small trained model that comes along.
            device: Where to put it; the first GPU if there is one, else the CPU. Quantised
                weights stay where transformers puts them unless this says otherwise.
            dtype: Weights' type; float32 on a CPU, the checkpoint's own on a GPU, with a
                ``device_map`` or when quantised.
            attn_implementation: ``sdpa`` or ``eager``; transformers' choice when None.
            revision: Revision of the hub repository.
            trust_remote_code: Whether code that comes with the model may run.
            lazy: Check configuration and processor now, and load the weights when they are first
                needed, which encoding does: a verified anatomy says which tokens are visual.
            remote: Load no weights: all runs on the server (:mod:`.opening.invented_weights`).
            anatomy: As for :class:`VisualLM`.
            **from_pretrained: More for transformers' ``from_pretrained``, for instance
                ``device_map`` (in place of ``device``) or ``quantization_config``.

        Raises:
            InputError: No such model, or it cannot be loaded.
            Unsupported: A model without images, or of a form embedlens cannot read.
        """
        checkpoint = open_checkpoint(
            name,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
            remote=remote,
            **from_pretrained,
        )
        model = cls(checkpoint, anatomy=anatomy)
        if not lazy:
            _ = model._open
        return model

    def __repr__(self) -> str:
        if self._opened is None:
            return f"VisualLM({self.name!r}: weights not loaded yet)"
        return (
            f"VisualLM({self.name!r}: {type(self.hf).__name__}, {self.n_layers} layers, "
            f"d={self.anatomy.hidden_size}, {self.dtype}, {self.device}, "
            f"{self.attn_implementation})"
        )

    def __reduce__(self) -> NoReturn:
        raise Unsupported(
            "a VisualLM does not travel with a remote run: write `layers = model.layers` or "
            "`nn = model.nn` before the block and use that inside it"
        )

    @property
    def hf(self) -> Any:
        """The transformers model."""
        return self._open.hf

    @property
    def nn(self) -> Any:
        """The nnsight model."""
        return self._open.nn

    @property
    def anatomy(self) -> Anatomy:
        """Where things are in this model.

        Verified on an image at once where there is a processor to make one, otherwise on the
        first batch that has an image (``anatomy.seen_image`` says which); refused before, if
        the model cannot do without an image.
        """
        return self._open.anatomy

    @property
    def processor(self) -> Any:
        """The model's processor, a copy of its owner's; None if it came without one."""
        return self._processor

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or None."""
        return None if self._processor is None else self._processor.tokenizer

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.anatomy.n_layers

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self._open.device

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the model computes."""
        return self._open.dtype

    @property
    def attn_implementation(self) -> str:
        """Attention implementation in force, for instance ``sdpa`` or ``eager``."""
        return str(self.hf.config.get_text_config()._attn_implementation)

    @property
    def image_placeholder(self) -> str:
        """The text that stands for an image in a prompt; empty where none is written."""
        return self._open.placeholder

    @property
    def layers(self) -> list[Any]:
        """The decoder layers as nnsight envoys, for use inside a trace."""
        return [self.nn.get(envoy_path(path)) for path in self.anatomy.layers]

    @property
    def embeddings(self) -> Float[Tensor, "vocab d"]:
        """The input embedding matrix."""
        return need_weights(self.hf, "embeddings").get_input_embeddings().weight  # type: ignore[no-any-return]

    @property
    def _open(self) -> OpenModel:
        """The model in memory; loads the weights of a checkpoint, once."""
        if self._opened is None:
            assert self._checkpoint is not None
            self._opened = OpenModel.of(self._checkpoint, self._processor, self._overrides)
        return self._opened

    def _need_processor(self) -> Any:
        if self._processor is None:
            raise InputError(NO_PROCESSOR)
        return self._processor
