"""Where what goes on inside one layer is read: weights and values, heads, neurons."""

from __future__ import annotations

from typing import Any

from ..anatomy.anatomy import Anatomy
from ..anatomy.attention_call import call_in
from ..anatomy.heads_and_neurons import attention_of, down_projection, heads_of
from ..errors import Unsupported
from ..opening.wrapping import envoy_path
from .run import Capture


def inside_site(model: Any, kind: Capture, layer: int) -> dict[str, Any]:
    """One site, as :func:`~embedlens.lens.runs.reading_in_trace.read_sites` takes it.

    Args:
        model: What has ``anatomy``, ``hf`` and ``nn``.
        kind: ``values``, ``attention_weights``, ``head_outputs`` or ``neurons``.
        layer: Which layer.

    Raises:
        Unsupported: The layer has none, or they cannot be told apart.
    """
    try:
        return {"key": f"{kind}.{layer}", "layer": layer, **_KINDS[kind](model, layer)}
    except Unsupported as reason:
        raise Unsupported(f"{kind.replace('_', ' ')}: {reason}") from None


def _of_call(model: Any, layer: int) -> dict[str, Any]:
    path = attention_of(model.anatomy, layer)
    causal = bool(getattr(model.hf.get_submodule(path), "is_causal", True))
    return {"path": envoy_path(path), "call": call_in(model, path), "causal": causal}


def _values(model: Any, layer: int) -> dict[str, Any]:
    return {"side": "values", **_of_call(model, layer)}


def _weights(model: Any, layer: int) -> dict[str, Any]:
    return {"side": "weights", **_of_call(model, layer)}


def _heads(model: Any, layer: int) -> dict[str, Any]:
    anatomy: Anatomy = model.anatomy
    heads = heads_of(model.hf, anatomy, layer)
    anatomy.require(f"sublayers:{layer}")
    if anatomy.attention[layer] != anatomy.mixer[layer]:
        raise Unsupported(
            f"a norm stands between the heads of layer {layer} and the residual stream "
            f"({anatomy.attention[layer]}), so what one head adds depends on all of them"
        )
    whole = envoy_path(str(anatomy.mixer[layer]))
    scale = anatomy.attention_scale[layer]
    found = {"path": envoy_path(heads.projection), "whole": whole, "count": heads.count}
    return {"side": "heads", "scale": scale, **found}


def _neurons(model: Any, layer: int) -> dict[str, Any]:
    path, whole = map(envoy_path, down_projection(model.hf, model.anatomy, layer))
    return {"side": "neurons", "path": path, "whole": whole}


_KINDS = {
    "values": _values,
    "attention_weights": _weights,
    "head_outputs": _heads,
    "neurons": _neurons,
}
