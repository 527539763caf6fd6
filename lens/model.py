"""A multimodal LLM on nnsight: encode, trace, run, generate and score, with or without a plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from .anatomy.anatomy import Anatomy
from .errors import Unsupported
from .inputs.batch import Batch
from .inputs.chats import Prompts
from .inputs.encoder import Stated
from .inputs.images import Images, Videos
from .loading import Checkpoint, open_checkpoint
from .opening.loaded_model import LoadedModel, Stage
from .opening.unwrapping import unwrapped
from .opening.wrapping import envoy_path, need_processor, origin_of, own_processor
from .runs import forward, generation, generation_details, generation_trace, many, scoring
from .runs.plan_protocol import Intervention, Pass, in_force
from .runs.remote import need_weights
from .runs.tracing import trace_forward
from .torch_settings import default_torch


class VisualLM:
    """A multimodal LLM whose visual tokens can be read and changed.

    The model stays as its owner has it: weights, training flags, gradients, hooks, configuration,
    and what a forward pass would leave behind. Every pass happens in evaluation mode. What does
    stay on each module, and does nothing outside a trace, are the two entries by which nnsight
    reaches it (``lens/opening/wrapping.py`` names them).

    Args:
        model: A multimodal model of transformers, in memory; an nnsight model around one, which
            is then used as it is (its weights are loaded if they are not); either of them inside
            peft, ``torch.compile``, DataParallel or another VisualLM, of which the model in it is
            taken, with its adapters in force; or a
            checkpoint that is not loaded yet, whose weights are loaded when needed.
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

    @default_torch()
    def __init__(
        self,
        model: Any,
        processor: Any = None,
        *,
        name: str | None = None,
        anatomy: Mapping[str, Any] | None = None,
    ) -> None:
        self._overrides = dict(anatomy or {})
        self._opened: Checkpoint | LoadedModel
        if isinstance(model, Checkpoint):
            self._processor = model.processor if processor is None else processor
            self.name = name or model.name
            self._opened = model
        else:
            if processor is None and isinstance(model, VisualLM):
                processor = model.processor
            hf, envoy = unwrapped(model)
            self.name = name or origin_of(hf) or type(hf).__name__
            self._processor = own_processor(processor, hf, envoy)
            self._opened = LoadedModel(hf, self._processor, envoy, self._overrides)

    @classmethod
    @default_torch()
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
            name: Hub id or local folder; None, or ``shipped``, is the small trained model that
                comes along (a folder of that name is ``./shipped``).
            device: Where to put it; the first GPU if there is one, else the CPU. Quantised
                weights stay where transformers puts them unless this says otherwise.
            dtype: Weights' type; float32 on a CPU, the checkpoint's own on a GPU, with a
                ``device_map`` or when quantised.
            attn_implementation: ``sdpa`` or ``eager``; transformers' choice when None.
            revision: Revision of the hub repository.
            trust_remote_code: Whether code that comes with the model may run.
            lazy: Check configuration and processor now, and load the weights when they are first
                needed, which encoding does: a verified anatomy says which tokens are visual.
            remote: Load no weights: all runs on the server (``opening/invented_weights``).
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
            _ = model._loaded
        return model

    def __repr__(self) -> str:
        if self._stage is not Stage.VERIFIED:
            return f"VisualLM({self.name!r}: {self._stage.value})"
        return (
            f"VisualLM({self.name!r}: {type(self.hf).__name__}, {self.n_layers} layers, "
            f"d={self.anatomy.hidden_size}, {self.dtype}, {self.device}, "
            f"{self.attn_implementation})"
        )

    def __copy__(self) -> VisualLM:
        """Another handle on the same model."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        return made

    @default_torch()
    def __deepcopy__(self, memo: dict[int, Any]) -> VisualLM:
        """The same with weights of its own, opened anew; weights that are not loaded stay so.

        Raises:
            Unsupported: The weights are on a server, or cannot be copied.
        """
        if self._stage is Stage.UNLOADED:
            return copy.copy(self)
        hf = need_weights(self.hf, "copy.deepcopy")
        try:
            made = copy.deepcopy(hf, memo)
        # Whatever quantised and offloaded weights raise.
        except Exception as error:
            raise Unsupported(
                f"the weights of {type(hf).__name__} cannot be copied "
                f"({type(error).__name__}: {error}): load the model again"
            ) from error
        return type(self)(made, self._processor, name=self.name, anatomy=self._overrides)

    def __reduce__(self) -> NoReturn:
        raise Unsupported(
            "a VisualLM does not travel to other processes, nor with a remote run: a worker calls "
            "VisualLM.load itself; for a remote block write `layers = model.layers` or "
            "`nn = model.nn` before it and use that inside"
        )

    @property
    def hf(self) -> Any:
        """The transformers model."""
        return self._loaded.hf

    @property
    def nn(self) -> Any:
        """The nnsight model."""
        return self._loaded.nn

    @property
    def anatomy(self) -> Anatomy:
        """Where things are in this model.

        Verified on an image at once where there is a processor to make one, otherwise on the
        first batch that has an image (``anatomy.seen_image`` says which); refused before, if
        the model cannot do without an image.
        """
        return self._loaded.anatomy

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
        return self._loaded.device

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the model computes."""
        return self._loaded.dtype

    @property
    def attn_implementation(self) -> str:
        """Attention implementation in force, for instance ``sdpa`` or ``eager``."""
        return str(self.hf.config.get_text_config()._attn_implementation)

    @property
    def image_placeholder(self) -> str:
        """The text that stands for an image in a prompt; empty where none is written."""
        return self._loaded.encoder.placeholder

    @property
    def layers(self) -> list[Any]:
        """The decoder layers as nnsight envoys, for use inside a trace."""
        nn = self.nn
        return [nn.get(envoy_path(path)) for path in self.anatomy.layers]

    @property
    def embeddings(self) -> Float[Tensor, "vocab d"]:
        """The input embedding matrix, adapters on it included; without what scales its rows."""
        need_weights(self.hf, "embeddings")
        return self._loaded.embedding_matrix()

    @default_torch()
    def encode(
        self,
        images: Images | None,
        prompts: Prompts,
        *,
        videos: Videos | None = None,
        template: bool | None = None,
        layout: Stated | None = None,
    ) -> Batch:
        """Turn images and prompts into a batch, through the model's own processor.

        Args:
            images: One image for all prompts, one per prompt, a list per prompt, or None. An
                image is a PIL image, a file (its name, its bytes or a file object, or a row
                ``{"bytes", "path"}`` of ``datasets``) or a uint8 array ``[height, width, 3]``;
                it is turned upright, and what is transparent lies on white. Several images with
                one text are one sample if the text has their placeholders; if it has none, say
                which is meant: ``encode([images], prompt)`` is one sample,
                ``encode(images, [prompt] * n)`` are n.
            prompts: One prompt or several; shorter ones are padded on the left. A prompt is text,
                or a conversation as transformers takes it: a list of ``{"role", "content"}``, the
                images in it or in ``images``.
            videos: Likewise, where the model takes videos: a video is a list of images, a uint8
                array ``[frame, height, width, 3]`` or a moving picture (GIF, APNG, WebP).
            template: None takes a prompt that contains the image placeholder as it stands and
                puts any other through the chat template, images first. True always applies the
                template (placeholders then mark where the images go), False never.
            layout: One for all images, or per prompt one for each of its images, where the
                layout of the visual tokens is not understood by itself.

        Raises:
            InputError: An unreadable image, a number of images or a layout that does not fit or
                can be read in two ways, or a model without a processor.
            Unsupported: The model takes no videos.
        """
        need_processor(self._processor)
        loaded, given = self._loaded, (images, prompts, videos, template)
        if loaded.stage is Stage.UNVERIFIED:
            loaded.verify_on_inputs(loaded.encoder.tensors(*given)[0])
        batch = loaded.encoder.encode(*given, layout)
        loaded.verify_on_batch(batch)
        return loaded.place_batch(batch)

    @default_torch()
    def batch(self, inputs: Mapping[str, Tensor], *, layout: Stated | None = None) -> Batch:
        """A batch from tensors as the model's processor returns them, padded on the left.

        Raises:
            InputError: ``attention_mask`` or another tensor that changes results is missing, or
                tensors (or the ``layout``, as for :meth:`encode`) do not fit together.
        """
        loaded = self._loaded
        loaded.verify_on_inputs(inputs)
        batch = loaded.encoder.batch(inputs, layout)
        if loaded.verify_on_batch(batch):
            # Which tokens are visual is only certain now.
            batch = loaded.encoder.batch(inputs, layout)
        return loaded.place_batch(batch)

    @default_torch()
    def trace(
        self,
        batch: Batch,
        plan: Intervention | None = None,
        *,
        remote: bool | str = False,
        grad: bool = False,
        **arguments: Any,
    ) -> Any:
        """An nnsight tracing context over one forward pass, with the plan in force.

        Inside it, ordinary nnsight works on ``model.layers[i]`` and ``model.nn``; what is read
        there has the plan's changes in it. A remote block takes along what it names, so there
        write ``layers = model.layers`` before it and use ``layers[i]`` inside.

        Where the plan acts it acts first. So an edit of your own at the same place that starts from
        what it reads there keeps the plan's changes; a tensor from elsewhere that is written there
        takes the place of all that was there, the plan's changes included.

        Args:
            batch: The inputs.
            plan: What to change; nothing when None.
            remote: False runs here, ``"local"`` rehearses a remote run in this process, True
                sends it to NDIF.
            grad: Whether to record gradients (local runs only; remote ones never do).
            **arguments: More arguments for the model's forward.
        """
        host = in_force(plan, self, batch, Pass("forward", remote=remote, traced=True))
        return trace_forward(host, self.hf, batch.inputs, remote=remote, grad=grad, **arguments)

    # Each is one file, which starts with what the method does and takes.
    run = forward.run
    run_many = many.run_many
    generate = generation.generate
    generate_ids = generation.generate_ids
    generate_many = many.generate_many
    generate_ids_many = many.generate_ids_many
    generate_details = generation_details.generate_details
    generate_details_many = many.generate_details_many
    generating = generation_trace.generating
    score = scoring.score
    score_many = many.score_many

    def entry(self, batch: Batch) -> Float[Tensor, "visual d"]:
        """The visual tokens as they enter the language model, rows as in ``batch.visual``."""
        return self.run(batch, capture="residual", layers=[0], logits=None).residual[0]

    @property
    def _stage(self) -> Stage:
        return Stage.UNLOADED if isinstance(self._opened, Checkpoint) else self._opened.stage

    @property
    def _loaded(self) -> LoadedModel:
        """The model in memory; loads the weights of a checkpoint, once."""
        if isinstance(self._opened, Checkpoint):
            with default_torch():
                hf, checkpoint = self._opened.load(), self._opened
                self._opened = LoadedModel(hf, self._processor, None, self._overrides, checkpoint)
        return self._opened
