"""One short forward pass with everything written down that the anatomy is verified against.

A real model's forward makes gigabytes of activations. So only a sample of token rows is kept from
the decoder, and of the modules before it only a fingerprint of each row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float64, Shaped
from torch import Tensor, nn

from ..errors import Unsupported
from ..runs.tracing import without_cache
from ..runs.undisturbed import undisturbed
from .decoder_parts import Parts

# Token rows kept of every activation: half of them visual, when there is an image.
ROWS_KEPT = 64
FINGERPRINT = 2


@dataclass(frozen=True)
class KeptRows:
    """The token rows that are kept of every activation."""

    positions: Tensor  # their positions, ``[row]``
    length: int  # tokens of the prompt

    def of(self, tensor: Tensor | None) -> Tensor | None:
        """Of ``[1, token, d]`` or ``[token, d]``, in float64 on the CPU; None of anything else."""
        if tensor is None or tensor.ndim not in (2, 3) or tensor.shape[:-1].numel() != self.length:
            return None
        flat = rearrange(tensor.detach(), "... d -> (...) d")
        return flat[self.positions.to(flat.device)].to("cpu", torch.float64)


@dataclass
class LayerRecord:
    """What went into and came out of one decoder layer, at the kept rows.

    Its methods are hooks. They are not functions made anew for every submodule, because the tests'
    type checker would examine each of those again.
    """

    kept: KeptRows  # which rows
    entering: Tensor | None = None  # stream entering the layer, ``[row, d]`` float64
    leaving: Tensor | None = None  # stream leaving it
    # Of every submodule (to depth 2) that returns one row per token, in finishing order
    outputs: dict[str, Tensor] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)  # submodules that returned a bare tensor
    arguments: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # by submodule, by name
    calls: int = 0  # how often the layer ran
    own_input: bool = False  # whether the layer received rows of its own beside the stream

    def on_leaving(self, _: nn.Module, __: Any, output: Any) -> None:
        """After the layer."""
        self.leaving = self.kept.of(first_tensor(output))

    def on_arguments(self, name: str, _: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        """Before a submodule."""
        self.arguments[name] = dict(kwargs)

    def on_output(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        """After a submodule."""
        found = self.kept.of(first_tensor(output))
        if found is None or self.entering is None or found.shape != self.entering.shape:
            return
        self.outputs.pop(name, None)  # where it runs twice, the last time counts
        self.outputs[name] = found
        if isinstance(output, Tensor):
            self.bare.add(name)


@dataclass
class Recording:
    """One forward pass."""

    layers: list[LayerRecord]  # one record per decoder layer
    # Entering the final norm at the last token, as the norm received it; None if it never ran
    final: Tensor | None = None
    stacked: bool = False  # whether the stream has more axes than ``[sample, token, d]``
    embeds: Tensor | None = None  # the decoder's, ``[token, d]``; or else what enters layer 0
    decoder_arguments: Mapping[str, Any] = field(default_factory=dict)
    # Per module outside the decoder two projections of each row of width d, ``[row, 2]`` float64
    fingerprints: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None  # rows that ``get_image_features`` returned, ``[n, d]``, or None
    shapes: set[int] = field(default_factory=set)  # rows of every tensor outside the decoder
    logits: Tensor | None = None  # at the last token, ``[vocab]``


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that a model's forward takes.

    A forward put over another says ``**kwargs`` for what it passes on: those below it count too.
    """
    below = [vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind)]
    return frozenset(
        name
        for forward in (model.forward, *below)
        for name, one in inspect.signature(forward).parameters.items()
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and name not in ("self", "input")
    )


def first_tensor(output: Any) -> Tensor | None:
    """The tensor a module returned, which may be the first of a tuple or of a model output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors in an output, however nested."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return [tensor for item in output for tensor in tensors_of(item)]
    return []


def project(rows: Shaped[Tensor, "*_ d"]) -> Float64[Tensor, "row 2"]:
    """Two random numbers per row, the same for equal rows."""
    generator = torch.Generator().manual_seed(0)
    width = rows.shape[-1]
    directions = torch.randn(width, FINGERPRINT, generator=generator, dtype=torch.float64)
    flat = rearrange(rows.detach(), "... d -> (...) d")
    # In blocks: float64 of a whole vision tower's output would be large.
    parts = [part.to("cpu", torch.float64) @ directions for part in torch.split(flat, 4096)]
    return torch.cat(parts) if parts else torch.empty(0, FINGERPRINT, dtype=torch.float64)


def record(
    model: nn.Module, parts: Parts, inputs: Mapping[str, Tensor], visual: Bool[Tensor, " token"]
) -> Recording:
    """Run the model once on one prompt; hooks and training flags are put back afterwards.

    Rows are sampled from both kinds of positions, visual and not. Unsupported where a layer does
    not run exactly once.
    """
    kept = KeptRows(_sample_rows(visual), len(visual))
    recording = Recording([LayerRecord(kept) for _ in parts.layers])
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model))
        stack.enter_context(torch.no_grad())
        hooks = _decoder_hooks(recording, parts), _outer_hooks(recording, model, parts)
        for handle in chain(*hooks):
            stack.enter_context(handle)
        stack.enter_context(_features_of(model, recording))
        # No logits_to_keep: some models then compute only the last token in their later layers.
        try:
            output = model(**inputs, **without_cache(model))
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise Unsupported(
                f"the forward of this {type(model).__name__} does not take all that the model "
                f"needs ({error}): give the model without what was put over its forward"
            ) from error
    recording.logits = output.logits[0, -1].detach()
    wrong = [i for i, layer in enumerate(recording.layers) if layer.calls != 1]
    if wrong:
        raise Unsupported(
            f"{type(model).__name__}: layer {wrong[0]} ran "
            f"{recording.layers[wrong[0]].calls} times in one forward; every layer must run "
            "exactly once"
        )
    return recording


def _sample_rows(visual: Tensor) -> Tensor:
    kinds = [torch.nonzero(kind).flatten() for kind in (visual, ~visual)]
    kept = []
    for positions in kinds:
        count = min(len(positions), ROWS_KEPT // 2)
        spread = torch.linspace(0, max(len(positions) - 1, 0), count).round().long()
        kept.append(positions[spread])
    return torch.cat(kept).sort().values


def stream_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The residual stream among a layer's arguments."""
    value = args[0] if args else kwargs.get("hidden_states")
    return value if isinstance(value, Tensor) else None


def _decoder_hooks(recording: Recording, parts: Parts) -> Iterator[Any]:
    def on_decoder(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recording.decoder_arguments = dict(kwargs)
        embeds = kwargs.get("inputs_embeds")
        if isinstance(embeds, Tensor) and embeds.ndim == 3:
            recording.embeds = embeds[0].detach().clone()

    def on_norm(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = stream_of(args, kwargs)
        if stream is not None and recording.final is None and stream.ndim == 3:
            recording.final = stream[:, -1:].detach().clone()

    yield parts.decoder.register_forward_pre_hook(on_decoder, with_kwargs=True)
    yield parts.norm.register_forward_pre_hook(on_norm, with_kwargs=True)
    for layer, made in zip(parts.layers, recording.layers, strict=True):
        yield from _layer_hooks(recording, layer, made)


def _layer_hooks(recording: Recording, layer: nn.Module, made: LayerRecord) -> Iterator[Any]:
    entering = partial(_on_entering, recording, made)
    yield layer.register_forward_pre_hook(entering, with_kwargs=True)
    yield layer.register_forward_hook(made.on_leaving)
    for name, module in layer.named_modules():
        if name and name.count(".") <= 1:
            before = partial(made.on_arguments, name)
            yield module.register_forward_pre_hook(before, with_kwargs=True)
            yield module.register_forward_hook(partial(made.on_output, name))


def _on_entering(
    recording: Recording,
    made: LayerRecord,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    stream = stream_of(args, kwargs)
    made.calls += 1
    recording.stacked |= stream is not None and stream.ndim > 3
    made.entering = made.kept.of(stream)
    made.own_input = any(
        isinstance(value, Tensor)
        and stream is not None
        and value.is_floating_point()
        and value.shape[:-1] == stream.shape[:-1]
        for value in (*args[1:], kwargs.get("per_layer_input"))
    )
    if recording.embeds is None and stream is not None and stream.ndim == 3:
        recording.embeds = stream[0].detach().clone()


def _outer_hooks(recording: Recording, model: nn.Module, parts: Parts) -> Iterator[Any]:
    """Fingerprints of what the modules outside the decoder return."""
    width = int(parts.embedding.weight.shape[1])
    # Some decoders embed the image themselves, so all but the decoder's layers is looked at.
    inside = {module for layer in parts.layers for module in layer.modules()}
    around = {m for m in model.modules() if any(child is parts.decoder for child in m.modules())}
    skipped = {parts.embedding, parts.norm, parts.head, *around}
    for name, module in model.named_modules():
        if module not in inside and module not in skipped:
            yield module.register_forward_hook(partial(_on_outer, recording, name, width))


def _on_outer(
    recording: Recording, name: str, width: int, _: nn.Module, __: Any, output: Any
) -> None:
    tensors = [tensor for tensor in tensors_of(output) if tensor.ndim >= 2]
    recording.shapes.update(int(tensor.shape[-2]) for tensor in tensors)
    fitting = [tensor for tensor in tensors if tensor.shape[-1] == width]
    if fitting and all(tensor.is_floating_point() for tensor in fitting):
        found = torch.cat([project(tensor) for tensor in fitting])
        earlier = recording.fingerprints.pop(name, None)
        recording.fingerprints[name] = found if earlier is None else torch.cat([earlier, found])


@contextmanager
def _features_of(model: Any, recording: Recording) -> Iterator[None]:
    """Note what ``get_image_features`` returns while the forward itself calls it."""
    owner: Any = getattr(model, "base_model", model)
    original = getattr(owner, "get_image_features", None)
    if original is None:
        yield
        return

    def noting(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        pooled = getattr(output, "pooler_output", output)
        width = model.get_input_embeddings().weight.shape[1]
        found = [
            rearrange(t, "... d -> (...) d") for t in tensors_of(pooled) if t.shape[-1] == width
        ]
        recording.features = torch.cat(found).detach() if found else None
        return output

    owner.get_image_features = noting
    try:
        yield
    finally:
        del owner.get_image_features
