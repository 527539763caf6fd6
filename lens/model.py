"""A multimodal LLM on nnsight: encode, trace, run, generate and score, with or without a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .anatomy.anatomy import Anatomy
from .captures import by_layer, capture_positions, capture_sites
from .errors import InputError, Unsupported
from .inputs.batch import Batch
from .inputs.encoding import Stated
from .inputs.images import Images, Videos
from .loading import Checkpoint, open_checkpoint
from .opening import OpenModel
from .passes import generate_ids, trace_forward
from .remote import need_weights
from .run import Editor, Pass, Run, Scores, Site
from .scoring import AnswerTokens, check_unseen
from .sites import read_sites
from .wrapping import NO_PROCESSOR, envoy_path, origin_of, own_processor, unwrapped

nnsight.register(read_sites.__module__)


class VisualLM:
    """A multimodal LLM whose visual tokens can be read and changed.

    The model stays as its owner has it: weights, training flags, gradients, hooks, configuration,
    and what a forward pass would leave behind. Every pass happens in evaluation mode. What does
    stay on each module, and does nothing outside a trace, are the two entries by which nnsight
    reaches it (``lens/wrapping.py`` names them).

    Args:
        model: A multimodal model of transformers, in memory; an nnsight model around one, which
            is then used as it is (its weights are loaded if they are not); or a
            :class:`~embedlens.lens.loading.Checkpoint`, whose weights are loaded when needed.
        processor: Its processor, of which a copy is used; without one the nnsight model's, or
            the one that belongs to the model's ``name_or_path``. A model without any processor
            takes batches made from tensors only.
        name: What to call it in results.
        anatomy: Arguments of :meth:`Anatomy.of`, for a model whose parts are not found or do not
            add up, for instance ``{"norm": "model.final_norm"}``.

    Raises:
        InputError: The processor is none, or the model is none.
        Unsupported: The model does not put visual tokens into a decoder's sequence, or its
            parts could not be found and verified.
    """

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
        cls,
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
    ) -> VisualLM:
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
            remote: Load no weights: all runs on the server (``lens/standing_in.py`` says how).
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

    def encode(
        self,
        images: Images | None,
        prompts: str | Sequence[str],
        *,
        videos: Videos | None = None,
        template: bool | None = None,
        layout: Stated | None = None,
    ) -> Batch:
        """Turn images and prompts into a batch, through the model's own processor.

        Args:
            images: One image for all prompts, one per prompt, a list per prompt, or None. An
                image is a PIL image, a file or a uint8 array ``[height, width, 3]``.
            prompts: One prompt or several; shorter ones are padded on the left.
            videos: Likewise, where the model takes videos: a video is a list of images or a
                uint8 array ``[frame, height, width, 3]``.
            template: None takes a prompt that contains the image placeholder as it stands and
                puts any other through the chat template, images first. True always applies the
                template (placeholders then mark where the images go), False never.
            layout: One for all images, or per prompt one for each of its images, where the
                layout of the visual tokens is not understood by itself.

        Raises:
            InputError: An unreadable image, a number of images or a layout that does not fit,
                or a model without a processor.
            Unsupported: The model takes no videos.
        """
        self._need_processor()
        return self._open.encode(images, prompts, videos, template, layout)

    def batch(self, inputs: Mapping[str, Tensor], *, layout: Stated | None = None) -> Batch:
        """A batch from tensors as the model's processor returns them, padded on the left.

        Raises:
            InputError: ``attention_mask`` or another tensor that changes results is missing, or
                tensors (or the ``layout``, as for :meth:`encode`) do not fit together.
        """
        return self._open.batch(inputs, layout)

    def trace(
        self,
        batch: Batch,
        plan: Editor | None = None,
        *,
        remote: bool | str = False,
        grad: bool = False,
        **forward: Any,
    ) -> Any:
        """An nnsight tracing context over one forward pass, with the plan in force.

        Inside it, ordinary nnsight works on ``model.layers[i]`` and ``model.nn``; what is read
        there has the plan's changes in it. A remote block takes along what it names, so there
        write ``layers = model.layers`` before it and use ``layers[i]`` inside.

        Args:
            batch: The inputs.
            plan: What to change; nothing when None.
            remote: False runs here, ``"local"`` rehearses a remote run in this process, True
                sends it to NDIF.
            grad: Whether to record gradients (local runs only; remote ones never do).
            **forward: More arguments for the model's forward.
        """
        target = self._edited(batch, plan, Pass("forward", remote=remote, traced=True))
        return trace_forward(target, self.hf, batch.inputs, remote=remote, grad=grad, **forward)

    @torch.no_grad()
    def run(
        self,
        batch: Batch,
        plan: Editor | None = None,
        *,
        capture: Site | Collection[Site] = (),
        layers: Collection[int] | Literal["all"] = "all",
        tokens: Literal["visual", "all"] | NDArray[np.bool_] = "visual",
        logits: Literal["last", "all"] | None = "last",
        remote: bool | str = False,
    ) -> Run:
        """One forward pass, returning logits and activations.

        Args:
            batch: The inputs.
            plan: What to change; nothing when None.
            capture: ``residual`` (the stream entering a layer), ``attention``, ``ffn`` (what
                they add to it).
            layers: Layers to keep; for ``residual`` 0 to ``n_layers`` inclusive.
            tokens: The visual tokens, in the order of ``batch.visual``; every position that is
                not padding; or a mask ``[sample, token]``.
            logits: Which positions' logits to keep.
            remote: As in :meth:`trace`.

        Raises:
            InputError: A site or layer that does not exist.
        """
        wanted = capture_sites(self.anatomy, capture, layers)
        rows, columns = capture_positions(batch, tokens)
        envoy, hf, samples = self.nn, self.hf, len(batch)
        forward = {} if logits == "all" else self.anatomy.last_logits(1)
        during = Pass("forward", remote=remote, positions=bool(wanted) or logits == "all")
        target = self._edited(batch, plan, during)
        with trace_forward(target, hf, batch.inputs, remote=remote, **forward):
            found = read_sites(envoy, wanted, samples, rows, columns).save()  # type: ignore[attr-defined]
            out = envoy.output.logits.save()
        scores = None if logits is None else out[:, -1] if logits == "last" else out
        return Run(scores, rows, columns, **by_layer(found, self.anatomy, batch, self.name))

    def entry(self, batch: Batch) -> Float[Tensor, "visual d"]:
        """The visual tokens as they enter the language model, rows as in ``batch.visual``."""
        return self.run(batch, capture="residual", layers=[0], logits=None).residual[0]

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        plan: Editor | None = None,
        *,
        max_new_tokens: int = 20,
        remote: bool | str = False,
        **generation: Any,
    ) -> list[str]:
        """Continue each prompt greedily; returns the new text only.

        Args:
            batch: The inputs.
            plan: What to change during prefill, decoding or both, as its operations say.
            max_new_tokens: Length limit.
            remote: As in :meth:`trace`.
            **generation: More arguments for transformers' ``generate``.
        """
        tokenizer = self._need_processor().tokenizer
        target = self._edited(batch, plan, Pass("generation", remote=remote))
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, **generation}
        ids = generate_ids(target, self.hf, batch.inputs, remote=remote, **settings)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def score(
        self,
        batch: Batch,
        answers: Sequence[str],
        plan: Editor | None = None,
        *,
        end: bool = False,
        remote: bool | str = False,
    ) -> Scores:
        """Log-probability of given answers after the prompts, in one forward pass.

        Operations of phase ``decode`` act on the answer's tokens, as they would if the model
        had generated them.

        Args:
            batch: The prompts.
            answers: One per sample.
            plan: What to change.
            end: Whether the end-of-sequence token belongs to the answer.
            remote: As in :meth:`trace`.

        Raises:
            InputError: Not one answer per sample, or an answer without tokens.
            Unsupported: The prompt's tokens would see the answer.
        """
        tokenizer = self._need_processor().tokenizer
        answered = AnswerTokens.of(tokenizer, answers, len(batch), end=end)
        inputs = answered.append_to(batch.inputs, self.hf)
        target = self._edited(batch, plan, Pass("scoring", answered.length, remote))
        envoy, hf = self.nn, self.hf
        keep = self.anatomy.last_logits(answered.length + 1)
        with trace_forward(target, hf, inputs, remote=remote, **keep):
            out = envoy.output.logits.save()
        if not self._unseen and "bidirectional_image" in self.anatomy.capabilities:
            check_unseen(self.run(batch, plan, remote=remote).logits, out, answered.length)
            self._unseen = True
        return answered.scores(out)

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

    def _edited(self, batch: Batch, plan: Editor | None, during: Pass) -> Any:
        return self.nn if plan is None else plan.edit(self, batch, during)
