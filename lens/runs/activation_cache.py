"""A run's captures as an ActivationCache of TransformerLens.

The hazard: TransformerLens takes ``hook_embed`` before the image features are put in, so at visual
positions, and only there, its own decompositions of the residual stream start from the
placeholder's embedding and do not add up. Here ``hook_embed`` is what the first layer receives.
Where something else is added between layers, no decomposition into attention and FFN adds up, and
none is offered.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import InputError, Unsupported

if TYPE_CHECKING:
    from .run import Run

# By how much of the stream's largest entry a layer's sum may miss; what rounding leaves is less.
TOLERANCE = 1e-3


def activation_cache(run: Run, model: Any = None) -> Any:
    """See :meth:`Run.to_activation_cache`."""
    anatomy = run.anatomy
    if not (run.residual or run.attention or run.ffn):
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
    _check_sums(run)
    named: dict[str, Tensor] = {}
    for layer, states in run.residual.items():
        if layer == 0:
            named["hook_embed"] = states
        if layer < anatomy.n_layers:
            named[f"blocks.{layer}.hook_resid_pre"] = states
        if layer > 0 and layer not in anatomy.injections:
            named[f"blocks.{layer - 1}.hook_resid_post"] = states
    for hook, kept in (("attn", run.attention), ("mlp", run.ffn)):
        named |= {f"blocks.{layer}.hook_{hook}_out": states for layer, states in kept.items()}
    shaped = {name: _by_sample(run, states) for name, states in named.items()}
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


def _by_sample(run: Run, states: Tensor) -> Tensor:
    """States ``[sample, selected, d]`` from ``[sample * selected, d]``."""
    rows = run.sample.numpy()
    samples, counts = np.unique(rows, return_counts=True)
    if len(set(counts.tolist())) != 1 or (np.diff(rows) < 0).any():
        raise InputError(
            f"an ActivationCache has equally many positions in every sample, and these have "
            f"{counts.tolist()}: capture one sample at a time, or tokens=mask with equal numbers"
        )
    return states.reshape(len(samples), int(counts[0]), -1)


def _check_sums(run: Run) -> None:
    """Refuse captures that a decomposition would add up to something else than the stream."""
    for layer in sorted(run.residual):
        parts: list[Mapping[int, Tensor]] = [run.attention, run.ffn]
        if layer + 1 not in run.residual or any(layer not in part for part in parts):
            continue
        entering, leaving = run.residual[layer].float(), run.residual[layer + 1].float()
        total = entering + sum(part[layer].float() for part in parts)
        missing = float((total - leaving).abs().max() / leaving.abs().max())
        if missing > TOLERANCE:
            raise Unsupported(
                f"attention and FFN are not all that layer {layer} adds to the residual stream at "
                f"these positions (relative error {missing:.2g}), so an ActivationCache of them "
                "would decompose the stream wrongly: capture 'residual' only"
            )
