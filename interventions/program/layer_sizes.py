"""What one decoder layer costs per token, from the shapes of its own weight matrices.

A formula with the hidden size in it is wrong for grouped keys, gated FFNs and experts, and
right-looking all the same. Every matrix of a layer is therefore accounted for by its shape, the
attention's shapes are checked against each other, and what is left over is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from ...lens.errors import Unsupported
from .scope import Subject

SCORED = frozenset({"attention", "sliding_attention", "chunked_attention"})


@dataclass(frozen=True)
class LayerSizes:
    """FLOPs (two for each multiplication with an addition) of one layer."""

    query: int  # per token, projecting queries and what attention gathered
    key: int  # per token, projecting keys and values
    pair: int  # per query and key, the score and the weighted value, over all heads
    ffn: int  # per token, the FFN; of a mixture of experts the active ones and the router
    addend: int  # of these, what is computed inside the module whose output is added to the stream


def layer_sizes(model: Subject) -> list[LayerSizes]:
    """The sizes of every decoder layer."""
    anatomy = model.anatomy
    anatomy.require("sublayers")
    if "per_layer_inputs" in anatomy.capabilities:
        raise Unsupported("the cost is not known: layers of this model have inputs of their own")
    if anatomy.last_token_layers:
        raise Unsupported(
            "the cost is not known: later layers of this model share keys and values of earlier "
            "ones"
        )
    return [_sizes(model, layer) for layer in range(anatomy.n_layers)]


def _sizes(model: Subject, layer: int) -> LayerSizes:
    anatomy = model.anatomy
    kind, path = anatomy.mixer_kinds[layer], anatomy.mixer[layer]
    if kind != "none" and (kind not in SCORED or path is None):
        raise Unsupported(
            f"the cost of layer {layer} is not known: it mixes tokens by {kind.replace('_', ' ')}, "
            "which has no scores over keys that could be counted"
        )
    whole = model.hf.get_submodule(anatomy.layers[layer])
    mixer = None if path is None else model.hf.get_submodule(path)
    inside = set() if mixer is None else set(mixer.modules())
    outside = [module for module in whole.modules() if module not in inside]
    query, key, pair = (0, 0, 0) if mixer is None else _attention(mixer, layer, anatomy.hidden_size)
    config = model.hf.config.get_text_config(decoder=True)
    addend = anatomy.ffn[layer]
    added = [] if addend is None else [*model.hf.get_submodule(addend).modules()]
    ffn, within = (_feed_forward(modules, layer, config) for modules in (outside, added))
    return LayerSizes(query, key, pair, ffn, within)


def _attention(mixer: nn.Module, layer: int, width: int) -> tuple[int, int, int]:
    """FLOPs of queries and output, of keys and values, and of a pair."""
    matrices = list(_matrices(mixer.modules(), layer))
    into = [made for taken, made in matrices if taken == width]
    back = [taken for taken, made in matrices if made == width]
    # Square matrices are among both; the way back is the one that is not, or any of them.
    gathered = next((taken for taken in back if taken != width), width if back else 0)
    if gathered == width:
        into.remove(width)
    groups = _groups(mixer)
    keys = 2 * gathered // groups if groups else 0
    if not gathered or len(matrices) != len(into) + 1 or sum(into) != gathered + keys:
        shapes = ", ".join(f"{taken}→{made}" for taken, made in matrices)
        raise Unsupported(
            f"the cost of layer {layer} is not known: its attention's matrices ({shapes}) are not "
            "queries, keys and values from the stream and one way back to it"
        )
    return 2 * width * gathered * 2, 2 * width * keys, 4 * gathered


def _groups(mixer: nn.Module) -> int:
    """Queries' heads for each head of keys, or 0 if it is not said."""
    found = getattr(mixer, "num_key_value_groups", None)
    if isinstance(found, int):
        return found
    heads, keys = (
        getattr(mixer, name, None) or getattr(getattr(mixer, "config", None), name, None)
        for name in ("num_attention_heads", "num_key_value_heads")
    )
    return heads // (keys or heads) if isinstance(heads, int) and heads else 0


def _feed_forward(modules: list[nn.Module], layer: int, config: Any) -> int:
    dense = sum(2 * taken * made for taken, made in _matrices(modules, layer, experts=True))
    groups = [
        stacked
        for module in modules
        if (stacked := [w for w in module.parameters(recurse=False) if w.ndim == 3])
    ]
    if not groups:
        return dense
    if len(groups) > 1:
        raise Unsupported(
            f"the cost of layer {layer} is not known: it has {len(groups)} groups of experts, and "
            "not every token goes to all of them"
        )
    active = [
        count for module in modules if isinstance(count := getattr(module, "top_k", None), int)
    ] or [
        count
        for name in ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k")
        if isinstance(count := getattr(config, name, None), int)
    ]
    if not active:
        raise Unsupported(
            f"the cost of layer {layer} is not known: it has experts, and nothing says how many of "
            "them a token goes to"
        )
    return dense + sum(2 * active[0] * weight[0].numel() for weight in groups[0])


def _matrices(modules: Any, layer: int, *, experts: bool = False) -> Iterator[tuple[int, int]]:
    """Width in and out of every matrix that is applied to each token."""
    for module in modules:
        taken, made = (getattr(module, name, None) for name in ("in_features", "out_features"))
        if isinstance(taken, int) and isinstance(made, int):
            yield taken, made
            continue
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 2 and name == "weight" and experts and _is_router(module):
                yield weight.shape[1], weight.shape[0]
            elif weight.ndim > 1 and "bias" not in name and not (experts and weight.ndim == 3):
                raise Unsupported(
                    f"the cost of layer {layer} is not known: what its weight {name!r} "
                    f"{list(weight.shape)} of {type(module).__name__} does is not"
                )


def _is_router(module: nn.Module) -> bool:
    """Whether a module with a bare matrix chooses experts."""
    return any(hasattr(module, name) for name in ("top_k", "num_experts", "n_routed_experts"))
