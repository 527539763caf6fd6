"""A run's captures as an ActivationCache of TransformerLens.

TransformerLens takes ``hook_embed`` before the image features are put in, so at visual
positions, and only there, its own decompositions of the residual stream start from the
placeholder's embedding and do not add up. Here ``hook_embed`` is what the first layer receives.
Where something else is added between layers, no decomposition into attention and FFN adds up, and
none is offered.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..anatomy.anatomy import Anatomy
from ..errors import InputError, Unsupported
from ..torch_settings import default_torch

Captured = Mapping[str, Mapping[int, Float[Tensor, "selected ..."]]]

# What goes on inside a layer, by the names that TransformerLens has for it.
HOOKS = {
    "attention": "hook_attn_out",
    "ffn": "hook_mlp_out",
    "values": "attn.hook_v",
    "attention_weights": "attn.hook_pattern",
    "head_outputs": "attn.hook_result",
    "neurons": "mlp.hook_post",
}

# By how much of the stream's largest entry a layer's sum may miss; what rounding leaves is less.
TOLERANCE = 1e-3


@default_torch()
def activation_cache(
    captured: Captured,
    sample: Int[Tensor, " selected"],
    query_sample: Int[Tensor, " query"] | None,
    anatomy: Anatomy | None,
    model: Any,
) -> Any:
    """See :meth:`Run.to_activation_cache`."""
    if not any(captured.values()):
        raise InputError(
            "nothing was captured: model.run(batch, capture=('residual', 'attention', 'ffn'))"
        )
    if anatomy is None:
        raise InputError(
            "a run that was loaded from a file does not know its model's parts: take the cache of "
            "the run that model.run returned"
        )
    try:
        lens = importlib.import_module("transformer_lens")
    except ImportError as error:
        raise InputError(
            "TransformerLens is not installed: pip install 'embedlens[transformer-lens]'"
        ) from error
    _check_sums(captured)
    named: dict[str, Tensor] = {}
    for layer, states in captured["residual"].items():
        if layer == 0:
            named["hook_embed"] = states
        if layer < anatomy.n_layers:
            named[f"blocks.{layer}.hook_resid_pre"] = states
        if layer > 0 and layer not in anatomy.injections:
            named[f"blocks.{layer - 1}.hook_resid_post"] = states
    shaped = {name: _by_sample(sample, states) for name, states in named.items()}
    for kind, hook in HOOKS.items():
        weights = kind == "attention_weights"
        rows = query_sample if weights and query_sample is not None else sample
        for layer, states in captured[kind].items():
            found = _by_sample(rows, states)
            turned = rearrange(found, "s query head key -> s head query key") if weights else found
            shaped[f"blocks.{layer}.{hook}"] = turned
    stand_in = SimpleNamespace(
        cfg=SimpleNamespace(
            n_layers=anatomy.n_layers,
            d_model=anatomy.hidden_size,
            attn_only=False,
            # Asked for a norm, the cache looks for the scale, which is not there, and says so.
            normalization_type="RMS",
        )
    )
    return lens.ActivationCache(shaped, stand_in if model is None else model)


def _by_sample(
    sample: Int[Tensor, " selected"], states: Float[Tensor, "selected ..."]
) -> Float[Tensor, "sample token ..."]:
    """States with an axis of samples, which must all have equally many positions."""
    rows = sample.numpy()
    samples, counts = np.unique(rows, return_counts=True)
    if len(set(counts.tolist())) != 1 or (np.diff(rows) < 0).any():
        raise InputError(
            f"an ActivationCache has equally many positions in every sample, and these have "
            f"{counts.tolist()}: capture one sample at a time, or tokens=mask with equal numbers"
        )
    return rearrange(states, "(sample token) ... -> sample token ...", sample=len(samples))


def _check_sums(captured: Captured) -> None:
    """Refuse captures that a decomposition would add up to something else than the stream."""
    residual, parts = captured["residual"], (captured["attention"], captured["ffn"])
    for layer in sorted(residual):
        if layer + 1 not in residual or any(layer not in part for part in parts):
            continue
        entering, leaving = residual[layer].float(), residual[layer + 1].float()
        total = entering + sum(part[layer].float() for part in parts)
        missing = float((total - leaving).abs().max() / leaving.abs().max())
        if missing > TOLERANCE:
            raise Unsupported(
                f"attention and FFN are not all that layer {layer} adds to the residual stream at "
                f"these positions (relative error {missing:.2g}), so an ActivationCache of them "
                "would decompose the stream wrongly: capture 'residual' only"
            )
