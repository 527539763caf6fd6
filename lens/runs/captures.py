"""What a run is asked to keep: module paths in firing order, and token positions.

A module's output is not always what the residual stream receives. Residual
multipliers, outputs that come back as one long row of tokens and layers that have no attention at
all are settled here, so that what a run returns is always what was added.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from ..anatomy.anatomy import Anatomy
from ..errors import InputError, Unsupported
from ..inputs.batch import Batch
from ..inputs.prompts import shorten
from ..opening.wrapping import envoy_path
from .run import SITES


def capture_sites(
    anatomy: Anatomy,
    capture: str | Collection[str],
    layers: Collection[SupportsIndex] | Literal["all"],
) -> list[dict[str, Any]]:
    """The sites to read, as :func:`~embedlens.lens.runs.reading.read_sites` takes them."""
    if isinstance(capture, Mapping):
        found = [capture_sites(anatomy, kind, those) for kind, those in capture.items()]
        return sorted((site for sites in found for site in sites), key=_firing)
    kinds = {capture} if isinstance(capture, str) else set(capture)
    if unknown := kinds - set(SITES):
        raise InputError(f"cannot capture {sorted(unknown)}; there are {', '.join(SITES)}")
    everything = isinstance(layers, str) and layers == "all"
    if isinstance(layers, str | int) and not everything:
        raise InputError(f"layers={layers!r}: give 'all' or a list of numbers, such as [0, 3]")
    chosen = range(anatomy.n_layers + 1) if everything else sorted({int(n) for n in layers})
    last = anatomy.n_layers if "residual" in kinds else anatomy.n_layers - 1
    if wrong := [layer for layer in chosen if not 0 <= layer <= anatomy.n_layers]:
        raise InputError(f"no layer {wrong[0]}: the model has layers 0 to {last}")
    if "residual" in kinds:
        anatomy.require("residual")
    if kinds & {"attention", "ffn"}:
        anatomy.require("sublayers")
    paths = {"attention": anatomy.attention, "ffn": anatomy.ffn}
    scales = {"attention": anatomy.attention_scale, "ffn": anatomy.ffn_scale}
    wanted: list[dict[str, Any]] = []
    for layer in chosen:
        if "residual" in kinds:
            path = envoy_path(anatomy.residual(layer))
            wanted.append({"key": f"residual.{layer}", "path": path, "side": "input", "scale": 1.0})
        for kind in ("attention", "ffn"):
            if kind not in kinds or layer == anatomy.n_layers:
                continue
            anatomy.require(f"sublayers:{layer}")
            addend = paths[kind][layer]
            if addend is not None:
                key, path, scale = f"{kind}.{layer}", envoy_path(addend), scales[kind][layer]
                wanted.append({"key": key, "path": path, "side": "output", "scale": scale})
            elif not everything:
                raise Unsupported(
                    f"layer {layer} adds nothing to the residual stream as {kind}: leave it out, "
                    "or take layers='all', which skips it"
                )
    return wanted


def _firing(site: Mapping[str, Any]) -> tuple[int, int]:
    """Layer, and place within it, in the order in which a model reaches sites."""
    kind, layer = site["key"].split(".")
    return int(layer), SITES.index(kind)


def lowest_layer(wanted: list[dict[str, Any]], n_layers: int) -> int:
    """The first layer that is read, of sites as :func:`capture_sites` returns them."""
    return min((int(site["key"].split(".")[1]) for site in wanted), default=n_layers)


def capture_positions(
    batch: Batch, tokens: str | NDArray[np.bool_] | Tensor
) -> tuple[Int[Tensor, " selected"], Int[Tensor, " selected"]]:
    """Batch rows and sequence positions of the tokens to keep."""
    if isinstance(tokens, Tensor):
        tokens = tokens.cpu().numpy()
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
        raise InputError(
            f"tokens={shorten(repr(tokens))}: run() captures 'visual', 'all' or a mask"
        )
    return torch.tensor(rows), torch.tensor(columns)


def by_layer(
    found: Mapping[str, Tensor], anatomy: Anatomy | None, batch: Batch, model: str = ""
) -> dict[str, Any]:
    """Fields of a :class:`Run`: what was read, as ``site -> layer -> states``, and where."""
    kept: dict[str, dict[int, Tensor]] = {site: {} for site in SITES}
    for key, states in found.items():
        site, layer = key.split(".")
        kept[site][int(layer)] = states
    return {**kept, "anatomy": anatomy, "batch": batch, "model": model}
