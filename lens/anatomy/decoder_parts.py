"""Finding layers, embedding, final norm and head of a multimodal LLM, before anything is verified.

``get_decoder()`` sometimes stops one level too high, a vision tower may own a list of as many
layers as the decoder, and image token ids live under several names and places of the configuration.
So candidates are ranked here by structure, and what was found is only believed once a forward pass
has confirmed it (``verification.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import Unsupported

LAYER_LISTS = ("layers", "h", "blocks", "layer")
HEADS = ("lm_head", "output_projection", "embed_out", "output")
FINAL_NORMS = tuple(
    "norm final_layernorm final_layer_norm ln_f layer_norm embedding_norm norm_f final_norm".split()
)
# Where configurations name the placeholder of visual tokens, most common first.
IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id", "media_placeholder_token_id")
VIDEO_IDS = ("video_token_id", "video_token_index")
CROSS_ATTENTION = ("cross_attn", "crossattention", "cross_attention", "encoder_attn")


@dataclass(frozen=True)
class Parts:
    """The modules that everything else is said in terms of."""

    decoder: nn.Module  # owns the list of layers
    layers: nn.ModuleList  # the decoder layers in order
    embedding: Any  # input embedding
    norm: Any  # final norm; its input is the residual stream after the last layer
    head: Any  # output head


def locate_parts(
    model: nn.Module,
    *,
    decoder: str | None = None,
    norm: str | None = None,
    head: str | None = None,
) -> Parts:
    """Find the parts of a model; names given by the user win over what is found."""
    _refuse_other_architectures(model)
    owner, layers = _decoder(model, decoder)
    if any(type(layer).__name__ == "OptimizedModule" for layer in layers):
        raise Unsupported(
            f"the layers of this {type(model).__name__} are wrapped by torch.compile(layer), which "
            "hides what is in them: compile them in place, layer.compile()"
        )
    final = model.get_submodule(norm) if norm else _first_child(owner, FINAL_NORMS)
    embedding = _accessor(model, "get_input_embeddings")
    top = model.get_submodule(head) if head else _head(model, embedding)
    for part, found, mend in (
        ("final norm", final, "norm='path.of.the.norm'"),
        ("input embedding", embedding, "nothing: get_input_embeddings() must return it"),
        ("output head", top, "head='path.of.the.head'"),
    ):
        if found is None:
            beside = token_id(model, IMAGE_IDS) is None
            hint = "; nor does its configuration name an image token: it may put the image "
            hint = f"{hint}beside the text by itself, where input_ids has no place for it"
            raise Unsupported(
                f"{type(model).__name__}: no {part} was found; pass {mend}{hint if beside else ''}"
            )
    return Parts(owner, layers, embedding, final, top)


def _refuse_other_architectures(model: nn.Module) -> None:
    """Refuse models whose visual tokens do not stand in the decoder's own sequence."""
    name, config = type(model).__name__, _config(model)
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, _text_config(config))):
        raise Unsupported(
            f"{name} is an encoder-decoder: its decoder never has visual tokens in its own "
            "sequence. embedlens reads decoder-only multimodal LLMs."
        )
    root = _accessor(model, "get_decoder") or model
    crossing = next(
        (path for path, _ in root.named_modules() if any(c in path for c in CROSS_ATTENTION)), None
    )
    # A resampler's own cross-attention sits outside the decoder and is fine.
    if crossing is not None and (root is not model or _owns_crossing_layers(model, crossing)):
        raise Unsupported(
            f"{name} looks at the image through cross-attention ({crossing!r}): there are no "
            "visual tokens in its sequence to read or change."
        )


def token_id(model: nn.Module, names: tuple[str, ...]) -> int | None:
    """A placeholder id from the configuration or one of its parts; None when there is none."""
    config = _config(model)
    for part in (config, getattr(config, "vision_config", None), _text_config(config)):
        for name in names:
            value = getattr(part, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
    return None


def takes_images(model: nn.Module) -> bool:
    """Whether the configuration speaks of images at all."""
    config = _config(model)
    named = any(getattr(config, part, None) is not None for part in ("vision_config", "vq_config"))
    return named or token_id(model, IMAGE_IDS) is not None


def _config(model: nn.Module) -> Any:
    return model.config


def _text_config(config: Any) -> Any:
    return config.get_text_config(decoder=True)


def _accessor(model: nn.Module, name: str) -> Any:
    accessor = getattr(model, name, None)
    return accessor() if callable(accessor) else None


def _head(model: nn.Module, embedding: Any) -> Any:
    """The declared output head, else the outermost linear map to a vocabulary of a usual name."""
    declared = _accessor(model, "get_output_embeddings")
    if declared is not None or embedding is None:
        return declared
    width = embedding.weight.shape[1]
    for name, module in sorted(model.named_modules(), key=lambda item: item[0].count(".")):
        named = isinstance(module, nn.Linear) and name.rpartition(".")[2] in HEADS
        if named and module.in_features == width:
            return module
    return None


def _first_child(module: nn.Module, names: tuple[str, ...]) -> Any:
    return next((c for n in names if (c := getattr(module, n, None)) is not None), None)


def _owns_crossing_layers(model: nn.Module, path: str) -> bool:
    owner, _ = _decoder(model, None)
    inside = {name for name, module in model.named_modules() if module is owner}
    return any(path.startswith(f"{name}." if name else "") for name in inside)


def _decoder(model: nn.Module, path: str | None) -> tuple[nn.Module, nn.ModuleList]:
    """The module that owns the list of decoder layers, and that list."""
    count = getattr(_text_config(_config(model)), "num_hidden_layers", None)
    if path is not None:
        found = next(_layer_lists(model.get_submodule(path), None), None)
        if found is None:
            raise Unsupported(f"decoder={path!r} owns no list of layers ({', '.join(LAYER_LISTS)})")
        return found
    named = _accessor(model, "get_decoder")
    if isinstance(named, nn.Module) and (found := next(_layer_lists(named, count), None)):
        return found
    embedding = _accessor(model, "get_input_embeddings")
    found_lists = list(_layer_lists(model, count))
    # Beside the word embedding rather than beside the patch embedding of a vision tower.
    found_lists.sort(key=lambda pair: all(m is not embedding for m in pair[0].modules()))
    if not found_lists:
        raise Unsupported(
            f"{type(model).__name__}: no list of {count} decoder layers was found; pass "
            "decoder='path.of.the.module.that.owns.the.layers'"
        )
    # The innermost owner that still holds the embedding, else the first.
    return found_lists[0]


def _layer_lists(root: nn.Module, count: int | None) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
    for module in root.modules():
        for name in LAYER_LISTS:
            layers = getattr(module, name, None)
            if isinstance(layers, nn.ModuleList) and len(layers) == (count or len(layers)):
                yield module, layers
