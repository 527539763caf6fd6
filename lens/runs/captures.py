"""What a run is asked to keep: module paths in firing order, and token positions.

A module's output is not always what the residual stream receives. Residual
multipliers, outputs that come back as one long row of tokens and layers that have no attention at
all are settled here, so that what a run returns is always what was added.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Integral
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
from ..selectors.parser import as_selector
from ..selectors.selector_types import Selector
from .inside_layers import inside_site
from .run import CAPTURES, INSIDE, SITES, Capture, Site

# The order in which a layer makes them.
FIRING: tuple[Capture, ...] = ("residual", *INSIDE[:3], "attention", *INSIDE[3:], "ffn")
# Kept are: what a selector or its text means, "all" but padding, or a mask [sample, token].
Tokens = str | Selector | NDArray[np.bool_] | Tensor


def capture_sites(
    model: Any,
    capture: str | Collection[str],
    layers: Collection[SupportsIndex] | Literal["all"],
) -> list[dict[str, Any]]:
    """The sites to read, as :func:`~embedlens.lens.runs.reading_in_trace.read_sites` takes them.

    ``model`` has an ``anatomy``, and for what goes on inside layers ``hf`` and ``nn``.
    """
    anatomy: Anatomy = model.anatomy
    if isinstance(capture, Mapping):
        found = [capture_sites(model, kind, those) for kind, those in capture.items()]
        return sorted((site for sites in found for site in sites), key=_firing)
    kinds = {capture} if isinstance(capture, str) else set(capture)
    if unknown := kinds - set(CAPTURES):
        raise InputError(f"cannot capture {sorted(unknown)}; there are {', '.join(CAPTURES)}")
    everything = isinstance(layers, str) and layers == "all"
    if isinstance(layers, str | Integral) and not everything:
        raise InputError(f"layers={layers!r}: give 'all' or a list of numbers, such as [0, 3]")
    chosen = range(anatomy.n_layers + 1) if everything else sorted({int(n) for n in layers})
    last = anatomy.n_layers if "residual" in kinds else anatomy.n_layers - 1
    if wrong := [layer for layer in chosen if not 0 <= layer <= anatomy.n_layers]:
        raise InputError(f"no layer {wrong[0]}: the model has layers 0 to {last}")
    if "residual" in kinds:
        anatomy.require("residual")
    if kinds & {"attention", "ffn"}:
        anatomy.require("sublayers")
    wanted: list[dict[str, Any]] = []
    skipped: dict[str, Unsupported] = {}
    for layer in chosen:
        if "residual" in kinds:
            path = envoy_path(anatomy.residual(layer))
            wanted.append({"key": f"residual.{layer}", "path": path, "side": "input", "scale": 1.0})
        for kind in FIRING[1:]:
            if kind not in kinds or layer == anatomy.n_layers:
                continue
            if kind in SITES:
                anatomy.require(f"sublayers:{layer}")
            try:
                wanted.append(
                    _addend_site(anatomy, kind, layer)
                    if kind in SITES
                    else inside_site(model, kind, layer)
                )
            except Unsupported as reason:
                if not everything:
                    raise
                skipped[kind] = reason
    read = {site["key"].split(".")[0] for site in wanted}
    if lost := [reason for kind, reason in skipped.items() if kind in INSIDE and kind not in read]:
        raise lost[0]
    return wanted


def _firing(site: Mapping[str, Any]) -> tuple[int, int]:
    """Layer, and place within it, in the order in which a model reaches sites."""
    kind, layer = site["key"].split(".")
    return int(layer), FIRING.index(kind)


def _addend_site(anatomy: Anatomy, kind: Site, layer: int) -> dict[str, Any]:
    """Where what attention or the FFN adds is read."""
    attention = kind == "attention"
    addend = (anatomy.attention if attention else anatomy.ffn)[layer]
    if addend is None:
        raise Unsupported(
            f"layer {layer} adds nothing to the residual stream as {kind}: leave it out, "
            "or take layers='all', which skips it"
        )
    scale = (anatomy.attention_scale if attention else anatomy.ffn_scale)[layer]
    key, path = f"{kind}.{layer}", envoy_path(addend)
    return {"key": key, "path": path, "side": "output", "scale": scale}


def capture_positions(
    batch: Batch, tokens: Tokens, layer: int | None = None
) -> tuple[Int[Tensor, " selected"], Int[Tensor, " selected"]]:
    """Batch rows and sequence positions of the tokens to keep, of sets by layer those in one."""
    if isinstance(tokens, str) and tokens == "visual":
        return torch.tensor(batch.visual.sample), torch.tensor(batch.visual.position)
    rows, columns = np.nonzero(token_mask(batch, tokens, "tokens", layer))
    return torch.tensor(rows), torch.tensor(columns)


def captured_pairs(
    batch: Batch, queries: Tokens, keys: Tokens, layer: int | None
) -> dict[str, Tensor]:
    """Whose attention weights are kept, as :func:`.weights_in_force.read_weights` takes it.

    All keys stand at their own positions; of a selection, each sample's stand one behind the other.
    """
    rows, columns = np.nonzero(token_mask(batch, queries, "queries", layer) & batch.real)
    mask = token_mask(batch, keys, "keys", layer) & batch.real
    if not len(rows) or not mask.any():
        raise InputError(
            f"attention weights of {shorten(repr(queries))} to {shorten(repr(keys))}: no token of "
            "this batch is meant, so there are none"
        )
    everyone = isinstance(keys, str) and keys == "all"
    width = batch.length if everyone else int(mask.sum(1).max())
    found = np.full((len(batch), width), -1)
    for row, here in enumerate(mask):
        positions = np.flatnonzero(here)
        found[row, positions if everyone else np.arange(len(positions))] = positions
    made = {"rows": rows, "columns": columns, "keys": found}
    return {name: torch.tensor(values) for name, values in made.items()}


def token_mask(
    batch: Batch, tokens: Tokens, what: str, layer: int | None = None
) -> NDArray[np.bool_]:
    """Which positions are meant, ``[sample, token]``, padding never."""
    if isinstance(tokens, Tensor):
        tokens = tokens.cpu().numpy()
    if isinstance(tokens, np.ndarray):
        if tokens.dtype != bool or tokens.shape != batch.real.shape:
            raise InputError(
                f"{what}: a mask must be boolean {batch.real.shape}, not {tokens.dtype} "
                f"{tokens.shape}"
            )
        return tokens
    if isinstance(tokens, str) and tokens == "all":
        return batch.real
    selector = as_selector(tokens)
    found = selector.select(batch, layer).prompt
    # Of tokens that are named as they come there may be none, and nothing is kept then.
    if not found.any() and tokens != "visual":
        raise InputError(f"{what}={str(selector)!r}: no token of the prompt matches")
    return found


def by_layer(
    found: Mapping[str, Tensor], anatomy: Anatomy | None, batch: Batch, model: str = ""
) -> dict[str, Any]:
    """Fields of a :class:`Run`: what was read, as ``kind -> layer -> states``, and where."""
    kept: dict[str, dict[int, Tensor]] = {kind: {} for kind in CAPTURES}
    for key, states in found.items():
        kind, layer = key.split(".")
        kept[kind][int(layer)] = states
    return {**kept, "anatomy": anatomy, "batch": batch, "model": model}
