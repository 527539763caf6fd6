"""Where things are inside one particular multimodal LLM, found by looking and then checked.

The hazard: the submodule called ``mlp`` is not always what the residual stream receives
(sandwich norms sit in between), and ``get_decoder()`` sometimes stops one level too high. So
nothing here is looked up by family name: candidates are found by structure and one short
forward pass decides, by adding up, which child modules' outputs *are* the layer's update.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from .errors import Unsupported

LAYER_LIST_NAMES = ("layers", "h", "blocks")
FINAL_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "layer_norm")

# The largest relative error at which "a + b is what the layer added" counts as an identity.
# Rounding in the model's own dtype is all that may remain.
SUM_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Anatomy:
    """Module paths and sizes of a decoder-only multimodal LLM.

    Attributes:
        layers: Path of every decoder layer, from the root of the transformers model.
        attention: Per layer, the path of the module whose output is the attention addend of
            the residual stream.
        ffn: Per layer, the path of the module whose output is the FFN addend.
        embedding: Path of the input embedding.
        norm: Path of the final norm; its input is the residual stream after the last layer.
        head: Path of the output head.
        image_token_id: Id of the placeholder that visual tokens stand at in ``input_ids``.
        hidden_size: Width of the residual stream.
        vocab_size: Rows of the input embedding.
        residual_error: Largest relative error of ``attention + ffn = layer update`` measured.
        logits_error: Largest absolute error of ``head(norm(residual)) = logits`` measured.
    """

    layers: tuple[str, ...]
    attention: tuple[str, ...]
    ffn: tuple[str, ...]
    embedding: str
    norm: str
    head: str
    image_token_id: int
    hidden_size: int
    vocab_size: int
    residual_error: float
    logits_error: float

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    def residual(self, layer: int) -> str:
        """Path of the module whose *input* is the residual stream entering ``layer``.

        ``layer == n_layers`` is the stream after the last layer, before the final norm.
        """
        return self.norm if layer == self.n_layers else self.layers[layer]

    @staticmethod
    def of(model: nn.Module) -> Anatomy:
        """Find and verify the anatomy of a loaded transformers model.

        Runs one text-only forward of four tokens.

        Raises:
            Unsupported: The model is text-only, is an encoder-decoder, or does not add up.
        """
        config: Any = model.config
        image_token_id = _image_token_id(model)
        text_config = config.get_text_config(decoder=True)
        if getattr(config, "is_encoder_decoder", False) or getattr(
            text_config, "is_encoder_decoder", False
        ):
            raise Unsupported(
                f"{type(model).__name__} is an encoder-decoder: its decoder never has visual "
                "tokens in its own sequence. embedlens reads decoder-only multimodal LLMs."
            )
        names = {module: name for name, module in model.named_modules()}
        decoder, layer_list = _decoder(model, text_config.num_hidden_layers)
        norm = _first_child(decoder, FINAL_NORM_NAMES)
        embedding, head = _get(model, "get_input_embeddings"), _get(model, "get_output_embeddings")
        if norm is None or embedding is None or head is None:
            missing = "final norm" if norm is None else "embedding" if embedding is None else "head"
            raise Unsupported(f"{type(model).__name__}: no {missing} found on {names[decoder]!r}.")
        recorded = _record(model, layer_list, norm)
        attention, ffn, residual_error = _calibrate(layer_list, names, recorded)
        with torch.no_grad():
            rebuilt = head(norm(recorded.residual[-1]))
        return Anatomy(
            layers=tuple(names[layer] for layer in layer_list),
            attention=attention,
            ffn=ffn,
            embedding=names[embedding],
            norm=names[norm],
            head=names[head],
            image_token_id=image_token_id,
            hidden_size=recorded.residual[0].shape[-1],
            vocab_size=embedding.weight.shape[0],
            residual_error=residual_error,
            logits_error=float((rebuilt - recorded.logits).abs().max()),
        )


@dataclass
class _Recorded:
    """One short forward: the stream entering each layer, and what each child returned."""

    residual: list[Tensor]
    children: list[dict[str, Tensor]]
    logits: Tensor


def _image_token_id(model: nn.Module) -> int:
    config: Any = model.config
    for name in ("image_token_id", "image_token_index"):
        token_id = getattr(config, name, None)
        if isinstance(token_id, int):
            return token_id
    raise Unsupported(
        f"{type(model).__name__} has no image token in its configuration: it is a text-only "
        "model, or one that does not put visual tokens into the sequence."
    )


def _get(model: nn.Module, accessor: str) -> Any:
    return getattr(model, accessor)()


def _first_child(module: nn.Module, names: tuple[str, ...]) -> Any:
    return next((c for n in names if (c := getattr(module, n, None)) is not None), None)


def _decoder(model: nn.Module, n_layers: int) -> tuple[nn.Module, nn.ModuleList]:
    """Descend from ``get_decoder()`` to the module that owns the list of decoder layers."""
    roots = [_get(model, "get_decoder")] if hasattr(model, "get_decoder") else []
    for root in [*roots, model]:
        for module in root.modules():
            for name in LAYER_LIST_NAMES:
                layers = getattr(module, name, None)
                if isinstance(layers, nn.ModuleList) and len(layers) == n_layers:
                    return module, layers
    raise Unsupported(f"{type(model).__name__}: no list of {n_layers} decoder layers was found.")


def _tensor(output: Any) -> Tensor | None:
    value = output[0] if isinstance(output, tuple) and output else output
    return value if isinstance(value, Tensor) else None


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _record(model: nn.Module, layers: nn.ModuleList, norm: nn.Module) -> _Recorded:
    residual: list[Tensor] = []
    children: list[dict[str, Tensor]] = [{} for _ in layers]

    def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        residual.append(stream.detach().clone())

    def on_output(index: int, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if (tensor := _tensor(output)) is not None:
                children[index][name] = tensor.detach().clone()

        return hook

    handles: list[Any] = []
    for index, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(on_input, with_kwargs=True))
        for name, child in layer.named_children():
            handles.append(child.register_forward_hook(on_output(index, name)))
    handles.append(norm.register_forward_pre_hook(on_input, with_kwargs=True))
    device = next(model.parameters()).device
    token_ids = torch.arange(4, device=device)[None] + 1
    was_training = model.training
    model.eval()
    with _hooks(handles), torch.no_grad():
        logits = model(
            input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False
        ).logits
    model.train(was_training)
    if len(residual) != len(layers) + 1:
        raise Unsupported(
            f"{type(model).__name__}: expected {len(layers)} layers and a final norm to run once "
            f"each, saw {len(residual)} calls."
        )
    return _Recorded(residual, children, logits.detach())


def _calibrate(
    layers: nn.ModuleList, names: Mapping[nn.Module, str], recorded: _Recorded
) -> tuple[tuple[str, ...], tuple[str, ...], float]:
    """Per layer, the two children whose outputs sum to what the layer added."""
    attention, ffn, worst = [], [], 0.0
    for index, layer in enumerate(layers):
        before, after = recorded.residual[index], recorded.residual[index + 1]
        update = (after - before).float()
        outputs = {
            name: value.float()
            for name, value in recorded.children[index].items()
            if value.shape == before.shape
        }
        pairs = {
            pair: float((outputs[pair[0]] + outputs[pair[1]] - update).norm() / update.norm())
            for pair in combinations(outputs, 2)
        }
        best = min(pairs, key=pairs.__getitem__, default=None)
        tolerance = SUM_TOLERANCE.get(before.dtype, 4e-2)
        if best is None or not pairs[best] < tolerance:
            error = "no candidates" if best is None else f"relative error {pairs[best]:.2g}"
            raise Unsupported(
                f"{names[layer]}: no two of its submodules ({', '.join(outputs)}) add up to what "
                f"the layer adds to the residual stream ({error}, tolerance {tolerance:g})."
            )
        # Hooks fire in execution order, so the first of the pair is the token mixer.
        first, second = best
        attention.append(f"{names[layer]}.{first}")
        ffn.append(f"{names[layer]}.{second}")
        worst = max(worst, pairs[best])
    return tuple(attention), tuple(ffn), worst
