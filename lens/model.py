"""A multimodal LLM on nnsight: encode, trace, run, generate and score, with or without a plan."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import nnsight
import numpy as np
import torch
from jaxtyping import Float, Int
from nnsight import TransformersModel
from nnsight.intervention.tracer import InterleavingTracer
from numpy.typing import NDArray
from torch import Tensor, nn

from .anatomy import Anatomy
from .batch import Batch
from .encoding import Encoder, Images
from .errors import InputError, Unsupported
from .loading import load_model, load_processor
from .run import SITES, Editor, Pass, Run, Scores, Site
from .scoring import AnswerTokens
from .sites import read_sites

nnsight.register(read_sites.__module__)


class VisualLM:
    """A multimodal LLM whose visual tokens can be read and changed.

    Args:
        hf_model: An image-text-to-text model of transformers, in memory. Its weights, hooks and
            settings stay as they are, except that it is put into evaluation mode; its modules'
            forwards become traceable by nnsight.
        processor: Its processor; loaded from the model's own ``name_or_path`` when None.

    Raises:
        InputError: No processor was given and none could be found.
        Unsupported: The model does not put visual tokens into a decoder's sequence, or its
            parts could not be found and verified.
    """

    def __init__(self, hf_model: nn.Module, processor: Any = None, *, name: str | None = None):
        self.hf: Any = hf_model.eval()
        origin = str(getattr(hf_model.config, "_name_or_path", "") or "")
        self.name = name or origin or type(hf_model).__name__
        self.anatomy = Anatomy.of(hf_model)
        # A copy, because nnsight sets the padding side and token on the tokenizer it is given.
        self.processor: Any = copy.deepcopy(processor or _find_processor(origin))
        self.tokenizer: Any = self.processor.tokenizer
        self.nn: Any = TransformersModel(
            hf_model,
            task="image-text-to-text",
            processor=self.processor,
            tokenizer=self.tokenizer,
        )
        self._encoder = Encoder(self.processor, self.anatomy.image_token_id)

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
        **from_pretrained: Any,
    ) -> VisualLM:
        """Load a model by name.

        Args:
            name: Hub id or local folder; None is the small trained model that comes with
                embedlens.
            device: Where to put it; the first GPU if there is one, else the CPU.
            dtype: Weights' type; float32 on a CPU, the checkpoint's own on a GPU.
            attn_implementation: ``sdpa`` or ``eager``; transformers' choice when None.
            revision: Revision of the hub repository.
            trust_remote_code: Whether code that comes with the model may run.
            **from_pretrained: More for transformers' ``from_pretrained``, for instance
                ``device_map`` or ``quantization_config``.

        Raises:
            InputError: No such model, or it cannot be loaded.
            Unsupported: A model without images, or of a form embedlens cannot read.
        """
        hf_model, processor, label = load_model(
            name,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **from_pretrained,
        )
        return cls(hf_model, processor, name=label)

    def __repr__(self) -> str:
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
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.anatomy.n_layers

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the input embedding."""
        return self.embeddings.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.embeddings.dtype

    @property
    def attn_implementation(self) -> str:
        """Attention implementation in force, for instance ``sdpa`` or ``eager``."""
        return str(self.hf.config.get_text_config()._attn_implementation)

    @property
    def image_placeholder(self) -> str:
        """The text that stands for an image in a prompt."""
        return self._encoder.placeholder

    @property
    def layers(self) -> list[Any]:
        """The decoder layers as nnsight envoys, for use inside a trace."""
        return [self.nn.get(path) for path in self.anatomy.layers]

    @property
    def embeddings(self) -> Float[Tensor, "vocab d"]:
        """The input embedding matrix."""
        weight: Tensor = self.hf.get_input_embeddings().weight
        return weight

    def encode(
        self, images: Images, prompts: str | Sequence[str], *, template: bool | None = None
    ) -> Batch:
        """Turn images and prompts into a batch, through the model's own processor.

        Args:
            images: One image for all prompts, one per prompt, or a list per prompt. An image is
                a PIL image, a file or a uint8 array ``[height, width, 3]``.
            prompts: One prompt or several; shorter ones are padded on the left.
            template: None takes a prompt that contains the image placeholder as it stands and
                puts any other through the chat template, images first. True always applies the
                template (placeholders then mark where the images go), False never.

        Raises:
            InputError: An unreadable image, or a number of images that does not fit.
            Unsupported: A layout of visual tokens that is not understood.
        """
        return self._to_device(self._encoder.encode(images, prompts, template))

    def batch(self, inputs: Mapping[str, Tensor]) -> Batch:
        """A batch from tensors as the model's processor returns them, padded on the left.

        Raises:
            InputError: ``attention_mask`` is missing, or tensors that do not fit together.
        """
        return self._to_device(self._encoder.batch(inputs))

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
        target = self._edited(batch, plan, Pass("forward"))
        return self._trace(target, batch.inputs, remote=remote, grad=grad, **forward)

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
            capture: What to keep: ``residual`` (the stream entering a layer), ``attention``,
                ``ffn`` (what they add to it).
            layers: Layers to keep; for ``residual`` 0 to ``n_layers`` inclusive.
            tokens: Positions to keep: the visual tokens, in the order of ``batch.visual``; every
                position that is not padding; or a mask ``[sample, token]``.
            logits: Which positions' logits to keep.
            remote: As in :meth:`trace`.

        Raises:
            InputError: A site or layer that does not exist.
        """
        wanted = self._sites([capture] if isinstance(capture, str) else list(capture), layers)
        rows, columns = self._positions(batch, tokens)
        forward: dict[str, Any] = {"logits_to_keep": 1} if logits != "all" else {}
        target = self._edited(batch, plan, Pass("forward"))
        envoy = self.nn
        with self._trace(target, batch.inputs, remote=remote, grad=False, **forward):
            found = read_sites(envoy, wanted, rows, columns).save()  # type: ignore[attr-defined]
            out = envoy.output.logits.save()
        kept: dict[str, dict[int, Tensor]] = {site: {} for site in SITES}
        for key, value in found.items():
            site, layer = key.split(".")
            kept[site][int(layer)] = value
        scores = None if logits is None else out[:, -1] if logits == "last" else out
        return Run(scores, rows, columns, kept["residual"], kept["attention"], kept["ffn"])

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
        target = self._edited(batch, plan, Pass("generation"))
        inputs = dict(batch.inputs)
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, **generation}
        with warnings.catch_warnings():
            # How an operation on every decoding step ends: it waits for one more step.
            warnings.filterwarnings("ignore", "'.*' was never reached: the loop asked for a step")
            with target.generate(**inputs, **settings, remote=remote) as tracer:
                ids = tracer.result.save()
        new = ids[:, batch.length :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]

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
        """
        answered = AnswerTokens.of(self.tokenizer, answers, len(batch), end=end)
        inputs = answered.append_to(batch.inputs)
        target = self._edited(batch, plan, Pass("scoring", answered.length))
        envoy = self.nn
        keep = {"logits_to_keep": answered.length + 1}
        with self._trace(target, inputs, remote=remote, grad=False, **keep):
            out = envoy.output.logits.save()
        return answered.scores(out)

    def _edited(self, batch: Batch, plan: Editor | None, during: Pass) -> Any:
        return self.nn if plan is None else plan.edit(self, batch, during)

    def _trace(
        self,
        target: Any,
        inputs: Mapping[str, Tensor],
        *,
        remote: bool | str,
        grad: bool,
        **forward: Any,
    ) -> Any:
        extra: dict[str, Any] = {"remote": remote}
        if not remote and not grad:
            extra["tracer_cls"] = _NoGradTracer
        return target.trace(**inputs, use_cache=False, **forward, **extra)

    def _sites(
        self, capture: Collection[str], layers: Collection[int] | Literal["all"]
    ) -> list[dict[str, str]]:
        if unknown := set(capture) - set(SITES):
            raise InputError(f"cannot capture {sorted(unknown)}; there are {', '.join(SITES)}")
        chosen = range(self.n_layers + 1) if layers == "all" else sorted(set(layers))
        last = self.n_layers if "residual" in capture else self.n_layers - 1
        if wrong := [layer for layer in chosen if not 0 <= layer <= self.n_layers]:
            raise InputError(f"no layer {wrong[0]}: {self.name} has layers 0 to {last}")
        wanted = []
        for layer in chosen:
            if "residual" in capture:
                wanted.append((f"residual.{layer}", self.anatomy.residual(layer), "input"))
            if layer < self.n_layers and "attention" in capture:
                wanted.append((f"attention.{layer}", self.anatomy.attention[layer], "output"))
            if layer < self.n_layers and "ffn" in capture:
                wanted.append((f"ffn.{layer}", self.anatomy.ffn[layer], "output"))
        return [{"key": key, "path": path, "side": side} for key, path, side in wanted]

    def _positions(
        self, batch: Batch, tokens: str | NDArray[np.bool_]
    ) -> tuple[Int[Tensor, " selected"], Int[Tensor, " selected"]]:
        if isinstance(tokens, np.ndarray):
            if tokens.dtype != bool or tokens.shape != (len(batch), batch.length):
                raise InputError(
                    f"tokens: a mask must be boolean {(len(batch), batch.length)}, not "
                    f"{tokens.dtype} {tokens.shape}"
                )
            rows, columns = np.nonzero(tokens)
        elif tokens == "visual":
            rows, columns = batch.visual.sample, batch.visual.position
        elif tokens == "all":
            rows, columns = np.nonzero(batch.inputs["attention_mask"].cpu().numpy())
        else:
            raise InputError(f"tokens={tokens!r}: run() captures 'visual', 'all' or a mask")
        return torch.as_tensor(rows), torch.as_tensor(columns)

    def _to_device(self, batch: Batch) -> Batch:
        moved = {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
            for name, tensor in batch.inputs.items()
        }
        return Batch(moved, batch.visual, batch.prompts, batch.images, batch.images_per_row)


class _NoGradTracer(InterleavingTracer):  # type: ignore[misc]
    """Runs a local trace without recording gradients, which nnsight does by default."""

    def execute(self, code: Any) -> None:
        with torch.no_grad():
            super().execute(code)


def _find_processor(origin: str) -> Any:
    if origin:
        try:
            return load_processor(origin)
        except (OSError, ValueError):
            pass
    raise InputError("this model comes without a processor: VisualLM(hf_model, processor)")
